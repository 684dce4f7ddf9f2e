"""The special tokens of the Step-Audio vocabulary, and where they stand."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

# Byte-level BPE as Qwen2 has it: how text is cut before the merges, and which character stands for which byte.

# Qwen2's: contractions; letters with at most one other character before them; single digits;
# punctuation with the newlines after it; newlines; spaces.
_PRETOKENIZE_REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _byte_symbols() -> tuple[str, ...]:
    """The character for each byte: itself where it is visible in Latin-1, else the next of those from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return tuple(
        chr(byte) if byte in visible else chr(0x100 + hidden.index(byte)) for byte in range(256)
    )


BYTE_SYMBOLS = _byte_symbols()
SYMBOL_TO_BYTE = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}


def qwen2_tokenizer(bpe: models.BPE) -> tokenizers.Tokenizer:
    """A tokenizer around a byte-level BPE, with Qwen2's normalisation (NFC) and cuts, and no added tokens."""
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
    """A BPE of 256 bytes, each byte's id its value, and a token after them for each merge of two symbols."""
    # Different merges can make the same token.
    symbols = dict.fromkeys((*BYTE_SYMBOLS, *(left + right for left, right in merges)))
    return models.BPE(
        vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=list(merges)
    )


def train_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """The `count` merges that byte-pair encoding (Sennrich et al. 2016) learns from texts; fewer where they have no more."""
    learner = qwen2_tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=len(BYTE_SYMBOLS) + count,
        initial_alphabet=list(BYTE_SYMBOLS),
        min_frequency=2,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


QWEN2_VOCAB_SIZE = 151_643  # entries of Qwen2's byte-level BPE; the special tokens follow it

QWEN2_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# Qwen2.5's own additions, which fill the ids between Qwen2's and Step-Audio's exactly.
QWEN25_TOKENS = (
    *(
        "<|object_ref_start|>",
        "<|object_ref_end|>",
        "<|box_start|>",
        "<|box_end|>",
        "<|quad_start|>",
        "<|quad_end|>",
    ),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *(
        "<tool_call>",
        "</tool_call>",
        "<|fim_prefix|>",
        "<|fim_middle|>",
        "<|fim_suffix|>",
        "<|fim_pad|>",
    ),
    *("<|repo_name|>", "<|file_sep|>"),
)

STEP_AUDIO_TOKENS = (
    *("<|EOT|>", "<|BOT|>", "<|CALL_START|>", "<|CALL_END|>", "<|THINK_START|>", "<|THINK_END|>"),
    *(
        "<|IMG_START|>",
        "<|IMG_END|>",
        "<|META_START|>",
        "<|META_END|>",
        "<im_patch>",
        "<im_start>",
        "<im_end>",
    ),
    *(
        "<dream>",
        "<dream_start>",
        "<dream_end>",
        "<|MASK_1e69f|>",
        "<|UNMASK_1e69f|>",
        "<video_start>",
        "<video_end>",
    ),
    *(
        "<patch_start>",
        "<patch_end>",
        "<patch_newline>",
        "<audio_start>",
        "<audio_end>",
        "<audio_patch>",
    ),
    *("<audio_patch_pad>", "<|SC|>", "<tts_start>", "<tts_end>", "<tts_pad>"),
)

AUDIO_CODES = tuple(
    f"<audio_{code}>" for code in range(6562)
)  # of the speech the model can answer with


def _token(content: str) -> int:
    return dataclasses.field(metadata={"content": content})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The ids of the special tokens that the prompt format uses.

    Attributes:
        pad: `<|endoftext|>`.
        bot, eot: begin and end a turn.
        audio_start, audio_patch, audio_end: a chunk of sound; each patch stands for one adaptor
        output.
        tts_start, tts_end: a reply in speech.
        think_start, think_end: unused by the format, whose `<think>` and `</think>` are ordinary
            text.
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
        """How each token is written, by the name of its field."""
        return {
            field.name: field.metadata["content"] for field in dataclasses.fields(SpecialTokens)
        }

    @staticmethod
    def from_ids(ids: Mapping[str, int]) -> "SpecialTokens":
        """From the ids of all added tokens by how they are written.

        Raises:
            KeyError: one is missing; it holds how that one is written.
        """
        return SpecialTokens(
            **{name: ids[content] for name, content in SpecialTokens.contents().items()}
        )


def qwen2_special_tokens() -> dict[int, str]:
    """The special tokens of a Step-Audio vocabulary by id, as they follow Qwen2's BPE."""
    contents = (*QWEN2_TOKENS, *QWEN25_TOKENS, *STEP_AUDIO_TOKENS, *AUDIO_CODES)
    return dict(enumerate(contents, start=QWEN2_VOCAB_SIZE))


def small_special_tokens(first: int) -> dict[int, str]:
    """The special tokens of a small vocabulary by id, from `first` on: Qwen2's and Step-Audio's, without codes of speech."""
    return dict(enumerate((*QWEN2_TOKENS, *STEP_AUDIO_TOKENS), start=first))
