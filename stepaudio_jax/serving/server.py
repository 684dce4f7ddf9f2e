"""Runs a server: engines, their thread, the application on uvicorn, and an orderly end."""

import asyncio
import contextlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import uvicorn
from fastapi import APIRouter, FastAPI

from stepaudio_jax.errors import EXIT_INTERRUPTED, ConfigError, RunError
from stepaudio_jax.generation import Engine
from stepaudio_jax.generation.chunked_prefill import ChunkedPrefillOptions
from stepaudio_jax.generation.loaded_model import LoadedModel
from stepaudio_jax.generation.shardings import round_up_slots
from stepaudio_jax.serving.app import create_app
from stepaudio_jax.serving.chat import ChatService
from stepaudio_jax.serving.chat_protocol import MAX_TOP_LOGPROBS
from stepaudio_jax.serving.clips import ClipReader
from stepaudio_jax.serving.command_link import CommandLink
from stepaudio_jax.serving.constraints import ConstraintFactory
from stepaudio_jax.serving.engine_thread import EngineThread, Lane
from stepaudio_jax.serving.metrics import Metrics
from stepaudio_jax.serving.models import ModelRegistry, ServedModel
from stepaudio_jax.serving.settings import EngineSettings, ServingSettings

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AFTER_DRAINING_S = 5.0  # to send what ends the last replies
_THREAD_END_S = 30.0
_CLIP_CACHE_BYTES = 256_000_000
_POLL_S = 0.2
_CPU_CHUNK, _ACCELERATOR_CHUNK = 128, 512


class Server:
    """A server of some models, which is compiled and running once `run` is called.

    Args:
        models: which answer; the first where a request names none.
        settings: what it allows.
        link: to the other processes that run the same engines (see `follow`); None for none.
        routers: further routes, such as those of preferences.

    Attributes:
        service: answers chats.
        app: the application.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        settings: ServingSettings,
        *,
        link: CommandLink | None = None,
        routers: Sequence[APIRouter] = (),
    ):
        self._settings = settings
        self._thread = EngineThread({model.name: model.lane for model in models}, link)
        engines = {model.name: model.lane.engine for model in models}
        self.service = ChatService(
            settings,
            ModelRegistry(list(models)),
            self._thread,
            Metrics(self._thread, engines),
            ClipReader(settings, _CLIP_CACHE_BYTES),
        )
        self._web: _DrainingServer | None = None
        self.app: FastAPI = create_app(settings, service=self.service, routers=routers)

    def run(self, listener: socket.socket) -> int:
        """Serves until it is told to stop, and running replies have ended.

        Args:
            listener: bound to the address; see `bind`.

        Returns:
            The exit code: 0 after SIGTERM, 130 after Ctrl-C.

        Raises:
            RunError: the engine has failed.
        """
        config = uvicorn.Config(
            self.app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=round(self._settings.drain_timeout_s + _AFTER_DRAINING_S),
        )
        web = self._web = _DrainingServer(config, self.service, self._settings.drain_timeout_s)
        self._thread.start()
        announcer = threading.Thread(target=self._announce, args=(listener,), daemon=True)
        announcer.start()
        web.run(sockets=[listener])
        failed = self._thread.state == "failed"
        self._thread.stop()
        self._thread.join(_THREAD_END_S)
        self.service.close()
        if failed:
            raise RunError("the engine has failed; its traceback is above. Start the server again")
        return EXIT_INTERRUPTED if web.was_interrupted else 0

    @property
    def has_ended(self) -> bool:
        """Whether the engines' thread has ended, and with it everything that computes."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Lets `run` end as SIGTERM does, from another thread."""
        self.service.drain()
        if self._web is not None:
            self._web.should_exit = True

    def _announce(self, listener: socket.socket) -> None:
        """Prints the address once requests are answered."""
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        while self._thread.state == "starting":
            time.sleep(_POLL_S)
        if self._thread.state == "ready":
            names = ", ".join(model.name for model in self.service.models)
            print(f"ready: http://{shown}:{port} answers with {names}", flush=True)


def follow(models: Sequence[ServedModel], link: CommandLink) -> int:
    """Runs the engines as the first process says, until it stops; returns the exit code.

    Signals are left to the first process: a pod sends them to all, and replies that run need all.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    EngineThread({model.name: model.lane for model in models}, link).run()
    return 0


def bind(settings: ServingSettings) -> socket.socket:
    """Returns a socket with the server's address, which does not listen yet.

    Raises:
        ConfigError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"host={settings.host!r}, port={settings.port}: cannot serve there"
            f" ({error.strerror or error}); choose another --host or --port"
        ) from None
    return listener


def build_model(
    name: str, loaded: LoadedModel, options: EngineSettings, *, base: str | None = None
) -> ServedModel:
    """Makes the engine of a loaded model.

    Args:
        name: under which it answers.
        loaded: the model, whose weights the engine shares.
        options: of the engine.
        base: the model whose weights it shares.

    Raises:
        GenerationError: the options do not fit the model.
    """
    positions = loaded.config.decoder.max_positions
    chunk = options.prefill_chunk
    if chunk is None:
        chunk = _CPU_CHUNK if jax.default_backend() == "cpu" else _ACCELERATOR_CHUNK
    engine = Engine(
        loaded.config,
        loaded.parameters,
        loaded.tokenizer,
        compute=loaded.compute,
        slots=round_up_slots(options.slots, loaded.compute.rules, loaded.mesh),
        slot_tokens=min(options.slot_tokens, positions),
        cache_dtype=options.cache_dtype,
        steps=options.steps,
        mesh=loaded.mesh,
        chunked_prefill=ChunkedPrefillOptions(
            chunk,
            round(options.prefix_cache_gb * 1e9),
            round(options.audio_cache_gb * 1e9),
        ),
        max_top_logprobs=min(MAX_TOP_LOGPROBS, loaded.config.decoder.vocab_size),
        has_masks=True,
    )
    lane = Lane(engine, ConstraintFactory(loaded.tokenizer, loaded.config.decoder.vocab_size))
    return ServedModel(name, loaded, lane, int(time.time()), _num_parameters(loaded), base)


def _num_parameters(loaded: LoadedModel) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(loaded.parameters))


class _DrainingServer(uvicorn.Server):
    """Lets running replies end once it is told to stop; told twice, it ends at once.

    Args:
        config: of uvicorn.
        service: answers chats.
        drain_timeout_s: after which replies are ended.
    """

    def __init__(self, config: uvicorn.Config, service: ChatService, drain_timeout_s: float):
        super().__init__(config)
        self._service = service
        self._drain_timeout_s = drain_timeout_s
        self._give_up: asyncio.TimerHandle | None = None
        self.was_interrupted = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals while the server runs.

        uvicorn's own method raises them again at the end, and the process would end by them.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begins to drain, or ends at once."""
        if self.should_exit:
            self.force_exit = True
            return
        self.should_exit = True
        self.was_interrupted = sig == signal.SIGINT
        self._service.drain()
        print(
            f"\nstopping: {self._service.num_jobs} requests may go on for"
            f" {self._drain_timeout_s:g} s",
            file=sys.stderr,
            flush=True,
        )

    async def on_tick(self, counter: int) -> bool:
        """Returns whether to stop; looks after the engines."""
        if self._service.thread.state == "failed":
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for the running replies, for as long as they may go on."""
        self._service.drain()
        loop = asyncio.get_running_loop()
        self._give_up = loop.call_later(self._drain_timeout_s, self._service.give_up)
        try:
            await super().shutdown(sockets)
        finally:
            self._give_up.cancel()
