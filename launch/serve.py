"""Serves a model to OpenAI's clients and to people's browsers.

    python -m launch.serve --model DIR [--port 8000] [--slots 16] [--tensor N]

It answers at http://HOST:PORT/v1/chat/completions once /health says so; the page is at /. Ctrl-C
and SIGTERM let running replies end first; a second one ends at once.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launch.arguments import add_compute_arguments
from launch.distributed import DISTRIBUTED_FLAG, initialize_distributed
from launch.errors import exit_on_error
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.serving.settings import (
    MIN_PREFILL_CHUNK,
    MIN_SLOT_TOKENS,
    EngineSettings,
    ServingSettings,
)
from stepaudio_jax.storage import expand_home

if TYPE_CHECKING:
    from stepaudio_jax.serving.models import ServedModel

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "llguidance")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses arguments and serves; returns the exit code."""
    options = make_parser().parse_args(arguments)
    with exit_on_error():
        settings, engine_settings = settings_of(options), engine_settings_of(options)
        names = _names(options)
        _check_installed()
        from stepaudio_jax.serving.command_link import CommandLink
        from stepaudio_jax.serving.preferences.routes import check_preferences
        from stepaudio_jax.serving.server import Server, bind, follow

        if options.distributed is not None:
            initialize_distributed(options.distributed)
        link = CommandLink() if options.distributed is not None else None
        if link is not None and not link.is_leader:
            return follow(_load_models(options, names, engine_settings), link)
        # Whether they can be had is known before the model is loaded.
        listener = bind(settings)
        check_preferences(settings)
        models = _load_models(options, names, engine_settings)
        print("compiling programs; /health says 503 until requests are answered", flush=True)
        server = Server(models, settings, link=link)
        code = server.run(listener)
        if not server.has_ended:
            # A compilation cannot be interrupted, and the interpreter must not end under it.
            sys.stdout.flush()
            os._exit(code)
        return code


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the program's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        type=expand_home,
        required=True,
        help="a Hugging Face folder or a checkpoint of this project",
    )
    parser.add_argument(
        "--model-name", metavar="NAME", help="its name in requests (default: the last part of DIR)"
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="another model in the same process, for comparisons",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a LoRA adapter on --model, as a model of its own that shares its weights",
    )
    add_compute_arguments(parser)
    parser.add_argument(
        "--int8-weights", action="store_true", help="the decoder's matrices in int8"
    )
    parser.add_argument(
        DISTRIBUTED_FLAG,
        nargs="?",
        const=DISTRIBUTED_FLAG,
        type=_distributed_argument,
        metavar="HOST:PORT,COUNT,INDEX",
        help="on every host of a pod slice; the first one answers requests. The value is needed"
        " where no cluster says who the hosts are",
    )
    _add_engine_arguments(parser)
    _add_access_arguments(parser)
    _add_limit_arguments(parser)
    return parser


def _distributed_argument(value: str) -> str:
    """Returns the flag as `initialize_distributed` reads it; argparse passes the bare one too."""
    return value if value == DISTRIBUTED_FLAG else f"{DISTRIBUTED_FLAG}={value}"


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    default = EngineSettings
    for flag, kind, help_text in (
        ("--slots", int, "replies generated side by side, by each model"),
        (
            "--slot-tokens",
            int,
            f"most tokens of prompt and reply, {MIN_SLOT_TOKENS} or more",
        ),
        ("--steps", int, "tokens of each reply between two looks at the queue"),
        (
            *("--prefix-cache-gb", float),
            "keys and values of prompts' beginnings kept on the device, for each model",
        ),
        ("--audio-cache-gb", float, "encoded sound kept in memory, for each model"),
    ):
        name = flag[2:].replace("-", "_")
        parser.add_argument(
            flag,
            type=kind,
            default=getattr(default, name),
            help=f"{help_text} (default %(default)s)",
        )
    parser.add_argument(
        "--prefill-chunk",
        type=int,
        help="tokens of a prompt computed at once while others run: a power of two,"
        f" {MIN_PREFILL_CHUNK} or more (default: 512, on a CPU 128)",
    )
    parser.add_argument(
        "--cache-dtype", choices=("float32", "bfloat16", "int8"), help="default: as --dtype"
    )


def _add_access_arguments(parser: argparse.ArgumentParser) -> None:
    default = ServingSettings
    parser.add_argument("--host", default=default.host, help="default %(default)s: this machine")
    parser.add_argument("--port", type=int, default=default.port, help="default %(default)s")
    parser.add_argument(
        "--api-key", action="append", default=[], metavar="KEY", help="may be given several times"
    )
    parser.add_argument(
        "--api-key-file",
        type=expand_home,
        metavar="FILE",
        help="keys, one a line",
    )
    parser.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a site whose pages may use the server (default: none)",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name of a server that listens to its own machine, as behind a proxy",
    )
    parser.add_argument(
        "--audio-domain",
        action="append",
        default=[],
        metavar="DOMAIN",
        help="a host from which audio_url may be read over https (default: none)",
    )
    parser.add_argument(
        "--audio-folder",
        type=expand_home,
        metavar="DIR",
        help="the folder whose files audio_url may name as file: (default: none)",
    )
    parser.add_argument(
        "--preferences",
        type=expand_home,
        metavar="DIR",
        help="let people compare replies, and keep their verdicts there",
    )
    parser.add_argument(
        "--pairs", type=expand_home, metavar="FILE", help="prepared pairs to compare"
    )


def _add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    default = ServingSettings
    for flag, kind, help_text in (
        ("--max-body-mb", float, "largest body of a request"),
        ("--max-bodies-mb", float, "most that bodies may take together while they are read"),
        ("--max-audio-s", float, "most seconds of sound in a request"),
        ("--max-clips", int, "most clips in a request"),
        ("--max-samples", int, "most replies to a request"),
        ("--max-queue", int, "replies that may wait for a slot; more are told to come back"),
        ("--request-timeout-s", float, "a request that takes longer, its wait included, is ended"),
        ("--drain-timeout-s", float, "how long running replies may go on at the end"),
        ("--url-timeout-s", float, "how long reading a request's clips from URLs may take"),
    ):
        name = flag[2:].replace("-", "_")
        parser.add_argument(
            flag,
            type=kind,
            default=getattr(default, name),
            help=f"{help_text} (default %(default)s)",
        )


def settings_of(options: argparse.Namespace) -> ServingSettings:
    """Returns the server's settings that the options give.

    Raises:
        ConfigError: a value is out of range, or the file of keys cannot be used.
    """
    from stepaudio_jax.serving.access import read_api_keys

    keys = tuple(options.api_key)
    if options.api_key_file is not None:
        keys += read_api_keys(options.api_key_file)
    return ServingSettings(
        host=options.host,
        port=options.port,
        api_keys=keys,
        cors_origins=tuple(options.cors_origin),
        allowed_hosts=tuple(options.allowed_host),
        audio_domains=tuple(options.audio_domain),
        audio_folder=options.audio_folder,
        max_body_mb=options.max_body_mb,
        max_bodies_mb=options.max_bodies_mb,
        max_audio_s=options.max_audio_s,
        max_clips=options.max_clips,
        max_samples=options.max_samples,
        max_queue=options.max_queue,
        request_timeout_s=options.request_timeout_s,
        drain_timeout_s=options.drain_timeout_s,
        url_timeout_s=options.url_timeout_s,
        preferences_folder=options.preferences,
        pairs=options.pairs,
    )


def engine_settings_of(options: argparse.Namespace) -> EngineSettings:
    """Returns how the options say that engines are made.

    Raises:
        ConfigError: a value is out of range.
    """
    return EngineSettings(
        slots=options.slots,
        slot_tokens=options.slot_tokens,
        prefill_chunk=options.prefill_chunk,
        steps=options.steps,
        prefix_cache_gb=options.prefix_cache_gb,
        audio_cache_gb=options.audio_cache_gb,
        cache_dtype=options.cache_dtype,
    )


def _check_installed() -> None:
    """Checks that what only the server needs is installed.

    Raises:
        ConfigError: something is missing.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the server needs {', '.join(missing)}: pip install -c constraints.txt -e '.[serve]'"
        )


def _names(options: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """Returns what answers under each name: ("model" or "adapter", folder), the first one first.

    Raises:
        ConfigError: a name is missing, or given twice.
    """
    first = options.model_name or os.path.basename(os.path.normpath(options.model)) or "model"
    names = {first: ("model", options.model)}
    for flag, kind in (("also", "model"), ("adapter", "adapter")):
        for argument in getattr(options, flag):
            name, equals, folder = argument.partition("=")
            if not (name and equals and folder):
                raise ConfigError(f"--{flag}={argument!r} must be NAME=DIR")
            if name in names:
                raise ConfigError(f"--{flag}={argument!r}: the name {name!r} is taken")
            names[name] = (kind, expand_home(folder))
    return names


def _load_models(
    options: argparse.Namespace,
    names: dict[str, tuple[str, str]],
    engine_settings: EngineSettings,
) -> "list[ServedModel]":
    from stepaudio_jax.generation import folder_decode_mesh, load_model
    from stepaudio_jax.generation.loaded_model import with_adapter
    from stepaudio_jax.serving.server import build_model

    models: list[ServedModel] = []
    for name, (kind, folder) in names.items():
        base = None
        if kind == "adapter":
            loaded, base = with_adapter(models[0].loaded, folder), models[0].name
        else:
            loaded = load_model(
                folder,
                options.dtype,
                int8_weights=options.int8_weights,
                mesh=folder_decode_mesh(folder, options.tensor),
                for_generation=True,
                history_reasoning=options.history_reasoning,
                channel=options.channel,
            )
        models.append(build_model(name, loaded, engine_settings, base=base))
    return models


if __name__ == "__main__":
    sys.exit(main())
