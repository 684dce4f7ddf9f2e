"""The settings of a server: who may use it, what a request may ask for, how long it may take."""

import dataclasses
import ipaddress
import re
from typing import Literal

from stepaudio_jax.errors import ConfigError

CacheDtype = Literal["float32", "bfloat16", "int8"]  # as `models.CacheDtype`, which needs jax

MIN_PREFILL_CHUNK = 32  # as `generation.chunked_prefill.MIN_CHUNK_TOKENS`, which needs jax
MIN_SLOT_TOKENS = 3  # a prompt of one token and a reply of two, with which programs are compiled

_DOMAIN = re.compile(r"(?!-)[a-z0-9-]{1,63}(?:\.(?!-)[a-z0-9-]{1,63})+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """What a server allows, with each limit's default.

    Attributes:
        host, port: the address it listens to.
        api_keys: a request must name one of them; empty lets everybody in.
        cors_origins: origins whose pages may use the server from a browser; empty for none.
        allowed_hosts: names under which a server that listens to its own machine may be asked,
            beside those of the machine; a proxy passes its own on.
        audio_domains: hosts from which `audio_url` may be read over https, with those below them.
        audio_folder: the folder whose files `audio_url` may name as `file:`; None for none.
        max_body_mb: largest body of a request, in MB.
        max_bodies_mb: most that all bodies may take together while they are read, in MB.
        max_audio_s: most seconds of sound in a request, all clips together.
        max_clips: most clips in a request.
        max_samples: most replies to a request (`n`).
        max_queue: replies that may wait for a slot, `n` of them to a request; a request that brings
            more is told to come back (429).
        request_timeout_s: a request that takes longer, its clips and its wait included, is ended.
        drain_timeout_s: how long running requests may go on once the server is told to stop.
        url_timeout_s: how long reading the clips of a request from their URLs may take, together.
        preferences_folder: where verdicts of people are kept; None turns that mode off.
        pairs: a file of prepared pairs to judge; None for none.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    audio_domains: tuple[str, ...] = ()
    audio_folder: str | None = None
    max_body_mb: float = 64.0
    max_bodies_mb: float = 1024.0
    max_audio_s: float = 1800.0
    max_clips: int = 32
    max_samples: int = 16
    max_queue: int = 256
    request_timeout_s: float = 600.0
    drain_timeout_s: float = 60.0
    url_timeout_s: float = 30.0
    preferences_folder: str | None = None
    pairs: str | None = None

    def __post_init__(self) -> None:
        for name in (
            *("max_body_mb", "max_bodies_mb", "max_audio_s"),
            *("request_timeout_s", "url_timeout_s"),
        ):
            self._check(name, 0 < getattr(self, name) < float("inf"), "be positive, and finite")
        for name in ("max_clips", "max_samples"):
            self._check(name, getattr(self, name) > 0, "be positive")
        self._check("max_queue", self.max_queue >= 0, "be 0 or more")
        self._check("drain_timeout_s", 0 <= self.drain_timeout_s < float("inf"), "be 0 or more")
        self._check("port", 0 <= self.port < 2**16, "lie between 0 (any free one) and 65535")
        for key in self.api_keys:
            # The key itself is not repeated: the message may end in a log.
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError("api_key: a key must be visible ASCII characters without blanks")
        for domain in self.audio_domains:
            if _is_address(domain) or not _DOMAIN.fullmatch(domain.lower()):
                raise ConfigError(
                    f"audio_domains={domain!r} must be the name of a host, such as"
                    " media.example.org: no scheme, port, path or address"
                )

    def _check(self, name: str, allowed: bool, rule: str) -> None:
        if not allowed:
            raise ConfigError(f"{name}={getattr(self, name)!r} must {rule}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How a server's engines are made.

    Attributes:
        slots: replies that are generated side by side, by each model.
        slot_tokens: tokens of prompt and reply together, at most; `MIN_SLOT_TOKENS` or more.
        prefill_chunk: tokens of a prompt that are computed between two calls of `decode`, a power
            of two, `MIN_PREFILL_CHUNK` or more; None for as many as take about as long as one: 128
            on a CPU, 512 on an accelerator.
        steps: tokens that a call of `decode` adds to each reply: fewer make streams smoother, more
            make the host's share smaller.
        prefix_cache_gb: of the keys and values of prompts' beginnings that are kept, on the device,
            for each model.
        audio_cache_gb: of encoded sound that is kept, on the host, for each model.
        cache_dtype: dtype of keys and values; None for that of the computation.
    """

    slots: int = 16
    slot_tokens: int = 8192
    prefill_chunk: int | None = None
    steps: int = 4
    prefix_cache_gb: float = 1.0
    audio_cache_gb: float = 0.5
    cache_dtype: CacheDtype | None = None

    def __post_init__(self) -> None:
        for name in ("slots", "slot_tokens", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive")
        if self.slot_tokens < MIN_SLOT_TOKENS:
            raise ConfigError(f"slot_tokens={self.slot_tokens} must be {MIN_SLOT_TOKENS} or more")
        chunk = self.prefill_chunk
        if chunk is not None and (chunk < MIN_PREFILL_CHUNK or chunk & (chunk - 1)):
            raise ConfigError(
                f"prefill_chunk={chunk} must be a power of two, {MIN_PREFILL_CHUNK} or more"
            )
        for name in ("prefix_cache_gb", "audio_cache_gb"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 or more, and finite")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
