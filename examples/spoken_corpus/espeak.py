"""espeak-ng through ctypes: text -> sound, with the library that the PyPI package `espeakng-loader` carries.

The library has one voice and one synthesizer a process, and a part of their state (the phase of a
voice's flutter, the gain control) lives on from one call to the next with no way to reset it: a
clip depends on all that was said before it. Each `Synthesizer` therefore loads a copy of the
library of its own. What it says first is the same in every run, copies do not disturb each other,
and several can speak at once on threads.
"""

import ctypes
import difflib
import functools
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Mapping
from types import MappingProxyType, ModuleType, TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.errors import StepAudioError

SAMPLE_RATE = 22_050

_SYNCHRONOUS = (
    2  # AUDIO_OUTPUT_SYNCHRONOUS: sound goes to the callback, before `espeak_Synth` returns
)
# one callback a clip: each takes the interpreter lock, and short buffers keep threads from running
# at once
_BUFFER_MS = 5_000
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_UTF8 = 1
_SEED = 1
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class CorpusError(StepAudioError):
    """A corpus cannot be made: an argument is out of range, or espeak-ng is not installed."""


@functools.cache
def variant_genders() -> Mapping[str, str | None]:
    """The library's voice variants, and the gender each one's file declares ("female", "male"), None where it declares none.

    Raises:
        CorpusError: espeak-ng is not installed.
    """
    return {path.name: _declared_gender(path) for path in sorted(_variants().iterdir())}


def variant_file(name: str) -> str:
    """The text of the file that makes a variant."""
    _check_name("variant", name, variant_genders())
    return (_variants() / name).read_text(encoding="utf-8", errors="replace")


class Synthesizer:
    """Speaks. Not safe to share between threads; each thread makes its own.

    The n-th clip is a function of the requests up to it, and of nothing else.

    Args:
        variants: voice variants beside the library's own: name -> text of a variant's file.

    Raises:
        CorpusError: espeak-ng is not installed.
    """

    def __init__(self, variants: Mapping[str, str] = MappingProxyType({})) -> None:
        loader = _loader()
        self._allowed = {*variant_genders(), *variants}
        self._folder = tempfile.TemporaryDirectory(
            ignore_cleanup_errors=True
        )  # Windows keeps a loaded file
        self._library = ctypes.CDLL(shutil.copy(loader.get_library_path(), self._folder.name))
        data = pathlib.Path(loader.get_data_path())
        if variants:
            data = _with_variants(data, pathlib.Path(self._folder.name, "data"), variants)
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self._blocks: list[bytes] = []
        self._callback = _Callback(self._receive)  # the library holds no reference to it
        rate = self._library.espeak_Initialize(_SYNCHRONOUS, _BUFFER_MS, str(data).encode(), 0)
        if rate != SAMPLE_RATE:
            raise CorpusError(
                f"espeak-ng could not start (espeak_Initialize returned {rate}); reinstall espeakng-loader"
            )
        self._library.espeak_SetSynthCallback(self._callback)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._library.espeak_Terminate()
        self._folder.cleanup()

    def say(
        self,
        text: str,
        *,
        language: str,
        variant: str | None = None,
        words_per_minute: int = 175,
        pitch: int = 50,
        pitch_range: int = 50,
    ) -> NDArray[np.int16]:
        """Speaks a text.

        Args:
            text: what to say.
            language: the library's name of it: "en", "en-us", "en-gb-x-rp", "cmn", ..
            variant: a name in `variant_genders()` or of the synthesizer's own; None for the
            language's own voice.
            words_per_minute: 80 to 450; 175 is the library's normal.
            pitch, pitch_range: 0 to 99; 50 is the voice's own. 64 steps of `pitch` are an octave.

        Returns:
            [samples] at 22 050 Hz.

        Raises:
            CorpusError: naming the argument, its value and what is allowed.
        """
        _check_name(
            "variant", variant, {None, *self._allowed}
        )  # the library takes any, and falls back in silence
        for name, value, low, high in (
            ("words_per_minute", words_per_minute, 80, 450),
            ("pitch", pitch, 0, 99),
            ("pitch_range", pitch_range, 0, 99),
        ):
            if not low <= value <= high:
                raise CorpusError(f"{name}={value} must be from {low} to {high}")
        if "\0" in text:
            raise CorpusError(f"text={text!r} has a zero character")
        voice = language if variant is None else f"{language}+{variant}"
        if "+" in language or self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise CorpusError(
                f"language={language!r} is none of espeak-ng's (allowed are names such as 'en-us', 'en-gb-x-rp', 'cmn')"
            )
        for parameter, value in (
            (_RATE, words_per_minute),
            (_VOLUME, 100),
            (_PITCH, pitch),
            (_RANGE, pitch_range),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._library.espeak_ng_SetRandSeed(_SEED)
        self._blocks.clear()
        encoded = text.encode()
        status = self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, _UTF8, None, None)
        sound = np.frombuffer(b"".join(self._blocks), np.int16)
        if status != 0 or not sound.any():
            raise CorpusError(
                f"espeak-ng made no sound of text={text!r} in language={language!r} (status {status})"
            )
        return sound

    def _receive(self, samples: int | None, count: int, events: int | None) -> int:
        if samples and count > 0:
            self._blocks.append(ctypes.string_at(samples, count * ctypes.sizeof(ctypes.c_int16)))
        return 0


def _loader() -> ModuleType:
    try:
        import espeakng_loader
    except ModuleNotFoundError:
        raise CorpusError(
            "espeak-ng is not installed; run: pip install 'stepaudio-jax[quickstart]'"
        ) from None
    return espeakng_loader


def _variants() -> pathlib.Path:
    return pathlib.Path(_loader().get_data_path(), "voices", "!v")


def _with_variants(
    data: pathlib.Path, copy: pathlib.Path, variants: Mapping[str, str]
) -> pathlib.Path:
    """A folder like the library's data, with more voice variants: links, but for those."""
    own = copy / "voices" / "!v"
    own.mkdir(parents=True)
    for folder, target in ((data, copy), (data / "voices", copy / "voices")):
        for path in folder.iterdir():
            if path.name not in ("voices", "!v"):
                (target / path.name).symlink_to(path)
    for name, text in variants.items():
        (own / name).write_text(text, encoding="utf-8")
    for path in (data / "voices" / "!v").iterdir():
        if path.name not in variants:
            (own / path.name).symlink_to(path)
    return copy


def _declared_gender(path: pathlib.Path) -> str | None:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0] == "gender":
            return fields[1].lower()
    return None


def _check_name(key: str, value: str | None, allowed: Collection[str | None]) -> None:
    if value not in allowed:
        names = sorted(name for name in allowed if name is not None)
        close = difflib.get_close_matches(str(value), names, n=1, cutoff=0)
        raise CorpusError(
            f"{key}={value!r} is none of espeak-ng's {len(names)}; the nearest is {close[0]!r}"
        )
