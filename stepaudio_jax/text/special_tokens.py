"""The vocabulary: Qwen2's byte-level BPE, and Step-Audio's special tokens with their ids."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

QWEN2_VOCAB_SIZE = 151_643  # entries of Qwen2's byte-level BPE; the special tokens follow it

QWEN2_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# They enclose a call of a tool in a reply. Where a vocabulary has tokens of these names, as
# Qwen2.5's and so the released models' has, a model writes those, and not their letters.
CALL_TAGS = ("<tool_call>", "</tool_call>")

# Qwen2.5's additions, which exactly fill the ids between Qwen2's and Step-Audio's.
QWEN25_TOKENS = (
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    *CALL_TAGS,
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)

STEP_AUDIO_TOKENS = (
    "<|EOT|>",
    "<|BOT|>",
    "<|CALL_START|>",
    "<|CALL_END|>",
    "<|THINK_START|>",
    "<|THINK_END|>",
    "<|IMG_START|>",
    "<|IMG_END|>",
    "<|META_START|>",
    "<|META_END|>",
    "<im_patch>",
    "<im_start>",
    "<im_end>",
    "<dream>",
    "<dream_start>",
    "<dream_end>",
    "<|MASK_1e69f|>",
    "<|UNMASK_1e69f|>",
    "<video_start>",
    "<video_end>",
    "<patch_start>",
    "<patch_end>",
    "<patch_newline>",
    "<audio_start>",
    "<audio_end>",
    "<audio_patch>",
    "<audio_patch_pad>",
    "<|SC|>",
    "<tts_start>",
    "<tts_end>",
    "<tts_pad>",
)

# Codes of the speech that Step-Audio's other models answer with.
AUDIO_CODES = tuple(f"<audio_{code}>" for code in range(6562))


def _token(content: str) -> int:
    return dataclasses.field(metadata={"content": content})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Holds the ids of the special tokens that the prompt format uses.

    Attributes:
        pad: `<|endoftext|>`.
        bot, eot: begin and end a turn.
        audio_start, audio_patch, audio_end: a chunk of sound; each patch is replaced by one audio
            embedding.
        tts_start, tts_end: a reply in speech.
        think_start, think_end: unused by the format, whose `<think>` and `</think>` are plain text.
    """

    pad: int = _token("<|endoftext|>")
    bot: int = _token("<|BOT|>")
    eot: int = _token("<|EOT|>")
    audio_start: int = _token("<audio_start>")
    audio_end: int = _token("<audio_end>")
    audio_patch: int = _token("<audio_patch>")
    tts_start: int = _token("<tts_start>")
    tts_end: int = _token("<tts_end>")
    think_start: int = _token("<|THINK_START|>")
    think_end: int = _token("<|THINK_END|>")

    @staticmethod
    def contents() -> dict[str, str]:
        """Returns the text of each token by the name of its field."""
        return {
            field.name: field.metadata["content"] for field in dataclasses.fields(SpecialTokens)
        }

    @staticmethod
    def from_ids(ids: Mapping[str, int]) -> "SpecialTokens":
        """Picks the tokens out of all added tokens.

        Args:
            ids: the text of each added token -> its id.

        Raises:
            KeyError: a token is missing; holds its text.
        """
        return SpecialTokens(
            **{name: ids[content] for name, content in SpecialTokens.contents().items()}
        )


def qwen2_special_tokens() -> dict[int, str]:
    """Returns the special tokens of a Step-Audio vocabulary by id; they follow Qwen2's BPE."""
    contents = (*QWEN2_TOKENS, *QWEN25_TOKENS, *STEP_AUDIO_TOKENS, *AUDIO_CODES)
    return dict(enumerate(contents, start=QWEN2_VOCAB_SIZE))


def small_special_tokens(first: int) -> dict[int, str]:
    """Returns the special tokens of a small vocabulary by id, from `first` on.

    They are Qwen2's and Step-Audio's, without the codes of speech.
    """
    return dict(enumerate((*QWEN2_TOKENS, *STEP_AUDIO_TOKENS), start=first))


# Qwen2's byte-level BPE: how text is split before the merges, and the character of each byte.

_PRETOKENIZE_REGEX = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # contractions
        r"[^\r\n\p{L}\p{N}]?\p{L}+",  # letters, with at most one other character before them
        r"\p{N}",  # single digits
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # punctuation with the newlines after it
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


def _byte_symbols() -> tuple[str, ...]:
    """Returns each byte's character: itself if visible in Latin-1, else the next from U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return tuple(
        chr(byte) if byte in visible else chr(0x100 + hidden.index(byte)) for byte in range(256)
    )


BYTE_SYMBOLS = _byte_symbols()
SYMBOL_TO_BYTE = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}


def qwen2_tokenizer(bpe: models.BPE) -> tokenizers.Tokenizer:
    """Returns a tokenizer of a byte-level BPE with Qwen2's normalisation and splits.

    It normalises to NFC and has no added tokens.
    """
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_bpe(merges: Sequence[tuple[str, str]] = ()) -> models.BPE:
    """Returns a BPE whose first 256 ids are the bytes, followed by one token for each merge."""
    # Different merges can make the same token, which must be counted once.
    symbols = dict.fromkeys((*BYTE_SYMBOLS, *(left + right for left, right in merges)))
    return models.BPE(
        vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=list(merges)
    )


def train_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """Returns the first `count` merges of byte-pair encoding, or all if the texts give fewer.

    Sennrich et al. 2016, arXiv 1508.07909.
    """
    learner = qwen2_tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=len(BYTE_SYMBOLS) + count,
        initial_alphabet=list(BYTE_SYMBOLS),
        min_frequency=2,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
