"""Text to speech with espeak-ng, through ctypes and the library in the package `espeakng-loader`.

The library keeps one voice and one synthesizer per process, and part of their state (the phase of a
voice's flutter, the gain control) survives from one call to the next and cannot be reset. A clip
therefore depends on everything synthesized before it. Each `Synthesizer` loads its own copy of the
library, so its output is reproducible, independent of other synthesizers, and several of them can
run at once on threads.
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

# AUDIO_OUTPUT_SYNCHRONOUS: the callback receives all samples before `espeak_Synth` returns.
_SYNCHRONOUS = 2
# Long enough for one callback per clip: every callback takes the interpreter lock, so many short
# buffers would make the threads wait for each other.
_BUFFER_MS = 5_000
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_UTF8 = 1
_SEED = 1
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class CorpusError(StepAudioError):
    """A corpus cannot be made: an argument is out of range, or espeak-ng is not installed."""


@functools.cache
def variant_genders() -> Mapping[str, str | None]:
    """Returns the gender ("female", "male" or None) that the file of each voice variant declares.

    Raises:
        CorpusError: espeak-ng is not installed.
    """
    return {path.name: _declared_gender(path) for path in sorted(_variants_folder().iterdir())}


def variant_file(name: str) -> str:
    """Returns the text of the file that defines a voice variant."""
    _check_name("variant", name, variant_genders())
    return (_variants_folder() / name).read_text(encoding="utf-8", errors="replace")


class Synthesizer:
    """Synthesizes speech. Not safe to share between threads: each thread makes its own.

    The n-th clip depends on the first n requests and on nothing else.

    Args:
        variants: additional voice variants: name -> text of the variant's file.

    Raises:
        CorpusError: espeak-ng is not installed.
    """

    def __init__(self, variants: Mapping[str, str] = MappingProxyType({})) -> None:
        loader = _loader()
        self._variants = {*variant_genders(), *variants}
        # Windows does not delete a loaded library.
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._library = ctypes.CDLL(shutil.copy(loader.get_library_path(), self._folder.name))
        data = pathlib.Path(loader.get_data_path())
        if variants:
            data = _copy_data_with_variants(data, pathlib.Path(self._folder.name, "data"), variants)
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self._blocks: list[bytes] = []
        self._callback = _Callback(self._receive)  # kept: the library holds no reference to it
        rate = self._library.espeak_Initialize(_SYNCHRONOUS, _BUFFER_MS, str(data).encode(), 0)
        if rate != SAMPLE_RATE:
            raise CorpusError(
                f"espeak-ng could not start (espeak_Initialize returned {rate}); "
                "reinstall espeakng-loader"
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
        """Synthesizes a text.

        Args:
            text: the text to speak.
            language: espeak-ng's name of the language: "en", "en-us", "en-gb-x-rp", "cmn", ..
            variant: a voice variant of the library or of `variants`; None for the default voice of
                the language.
            words_per_minute: from 80 to 450; espeak-ng's default is 175.
            pitch: from 0 to 99; 50 is the default, 64 steps are an octave.
            pitch_range: from 0 to 99; 50 is the default.

        Returns:
            int16 samples `[samples]` at 22 050 Hz.

        Raises:
            CorpusError: naming the argument, its value and what is allowed.
        """
        # The library accepts any name and silently falls back to its default.
        _check_name("variant", variant, {None, *self._variants})
        for name, value, low, high in (
            ("words_per_minute", words_per_minute, 80, 450),
            ("pitch", pitch, 0, 99),
            ("pitch_range", pitch_range, 0, 99),
        ):
            if not low <= value <= high:
                raise CorpusError(f"{name}={value} must be from {low} to {high}")
        if "\0" in text:
            raise CorpusError(f"text={text!r} contains a zero character")
        voice = language if variant is None else f"{language}+{variant}"
        if "+" in language or self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise CorpusError(
                f"language={language!r} is not a language of espeak-ng "
                "(for example 'en-us', 'en-gb-x-rp', 'cmn')"
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
                f"espeak-ng made no sound for text={text!r} in language={language!r} "
                f"(status {status})"
            )
        return sound

    def _receive(self, samples: int | None, count: int, events: int | None) -> int:
        """Receives a block of samples from the library; 0 asks it to continue."""
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


def _variants_folder() -> pathlib.Path:
    return pathlib.Path(_loader().get_data_path(), "voices", "!v")


def _copy_data_with_variants(
    data: pathlib.Path, copy: pathlib.Path, variants: Mapping[str, str]
) -> pathlib.Path:
    """Makes a folder like the library's data with more voice variants; the rest are links."""
    variants_folder = copy / "voices" / "!v"
    variants_folder.mkdir(parents=True)
    for folder, target in ((data, copy), (data / "voices", copy / "voices")):
        for path in folder.iterdir():
            if path.name not in ("voices", "!v"):
                (target / path.name).symlink_to(path)
    for name, text in variants.items():
        (variants_folder / name).write_text(text, encoding="utf-8")
    for path in (data / "voices" / "!v").iterdir():
        if path.name not in variants:
            (variants_folder / path.name).symlink_to(path)
    return copy


def _declared_gender(path: pathlib.Path) -> str | None:
    """Reads the gender that a variant's file declares."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0] == "gender":
            return fields[1].lower()
    return None


def _check_name(key: str, value: str | None, allowed: Collection[str | None]) -> None:
    """Checks a name against those that espeak-ng has; the error names the nearest one."""
    if value not in allowed:
        names = sorted(name for name in allowed if name is not None)
        close = difflib.get_close_matches(str(value), names, n=1, cutoff=0)
        raise CorpusError(
            f"{key}={value!r} is none of the {len(names)} that espeak-ng has; "
            f"the nearest is {close[0]!r}"
        )
