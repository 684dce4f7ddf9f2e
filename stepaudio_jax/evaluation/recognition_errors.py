"""Counts the errors of a transcript: words or characters, after Whisper's normalization.

Texts are normalized as in Whisper's evaluation (Radford et al. 2022, appendix C): the English
normalizer for English, the basic one for others. Languages that write no spaces are compared by
characters, all others by words. Errors are counted by jiwer.
"""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal

from stepaudio_jax.errors import ConfigError

Unit = Literal["word", "character"]
# ISO 639 codes and names of languages without spaces between words.
_BY_CHARACTER = frozenset(
    (
        *("zh", "zho", "chi", "cmn", "yue", "wuu", "nan", "chinese", "mandarin", "cantonese"),
        *("ja", "jpn", "jp", "japanese", "th", "tha", "thai", "lo", "lao", "my", "mya", "burmese"),
        *("km", "khm", "khmer", "bo", "tibetan", "中文", "汉语", "普通话", "粤语", "日语", "泰语"),
    )
)
_FIRST_WORD = re.compile(r"[^\W\d_]+")  # of "en-US", "zh_CN", "Chinese (Mandarin)"
_ENGLISH = frozenset(("en", "eng", "english", "英语"))
# Of the names that Unicode gives to letters of scripts without spaces.
_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "MYANMAR", "KHMER", "TIBETAN", "BOPOMOFO")


@dataclasses.dataclass(frozen=True)
class ErrorCount:
    """Holds the errors of one transcript.

    Attributes:
        errors: substitutions, deletions and insertions.
        length: of the reference, in the same unit.
        unit: what was counted.
    """

    errors: int
    length: int
    unit: Unit


def count_errors(
    reference: str,
    transcript: str,
    language: str | None = None,
    spellings: Mapping[str, str] | None = None,
) -> ErrorCount:
    """Returns the errors of a transcript against what was said.

    Args:
        reference: what was said.
        transcript: of a model.
        language: name or code, perhaps with a region ("en-US"); None to go by the reference's
            letters: more than half of a script without spaces, or else English where all letters
            are those of English.
        spellings: {British spelling: American}, as `normalizer.json` of Whisper's models; None for
            none, since transformers ships the normalizer without it.

    Raises:
        ConfigError: jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError:
        raise ConfigError(
            "word error rates are counted by jiwer; install the extra: pip install"
            " 'stepaudio-jax[evaluation]'"
        ) from None
    unit, is_english = _kind(reference, language)
    normalize = _normalizer(unit, is_english, tuple(sorted((spellings or {}).items())))
    expected, written = normalize(reference).split(), normalize(transcript).split()
    if not expected or not written:  # jiwer refuses texts without a word
        return ErrorCount(max(len(expected), len(written)), len(expected), unit)
    output = jiwer.process_words(" ".join(expected), " ".join(written))
    errors = output.substitutions + output.deletions + output.insertions
    return ErrorCount(errors, len(expected), unit)


def _kind(reference: str, language: str | None) -> tuple[Unit, bool]:
    """Returns the unit, and whether the text is English."""
    if language is not None and (first := _FIRST_WORD.search(language)):
        code = first[0].casefold()
        return ("character" if code in _BY_CHARACTER else "word"), code in _ENGLISH
    letters = [char for char in reference if char.isalpha()]
    unspaced = sum(unicodedata.name(char, "").startswith(_SCRIPTS) for char in letters)
    if 2 * unspaced > len(letters):
        return "character", False
    return "word", all(char.isascii() for char in letters)


@functools.lru_cache(maxsize=8)
def _normalizer(unit: Unit, is_english: bool, spellings: tuple[tuple[str, str], ...]) -> Any:
    from transformers.models.whisper.english_normalizer import (
        BasicTextNormalizer,
        EnglishTextNormalizer,
    )

    if unit == "character":
        return BasicTextNormalizer(split_letters=True)
    return EnglishTextNormalizer(dict(spellings)) if is_english else BasicTextNormalizer()
