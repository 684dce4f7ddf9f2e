"""Byte-level BPE as Qwen2 has it: how text is cut before the merges, and which character stands for which byte."""

import json
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

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
