"""Tokenizer: text <-> token ids, with special tokens that no text can spell."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import tokenizers
from tokenizers import AddedToken

from stepaudio_jax.errors import TextError
from stepaudio_jax.storage import PathLike, hash_json
from stepaudio_jax.text import tokenizer_files
from stepaudio_jax.text.chat_templates import (
    NamedTemplates,
    read_original_templates,
    write_chat_templates,
)
from stepaudio_jax.text.special_tokens import (
    CALL_TAGS,
    SYMBOL_TO_BYTE,
    SpecialTokens,
    byte_bpe,
    qwen2_tokenizer,
    small_special_tokens,
    train_merges,
)


class Tokenizer:
    """Encodes text with a byte-level BPE, and names the special tokens that follow it.

    Attributes:
        special: the ids of the special tokens that the prompt format uses.
        required_vocab_size: one more than the largest id that text or the prompt format uses. A
            model with Qwen2.5's vocabulary has that many rows, though it ends before Step-Audio's
            codes of speech.
        vocab_size: one more than the largest id. A model's vocabulary may be larger (padded).
    """

    def __init__(
        self,
        bpe: tokenizers.Tokenizer,
        added: Mapping[int, AddedToken],
        *,
        original_templates: NamedTemplates | None = None,
    ):
        """Wraps a BPE; see `from_folder`, `byte_level` and `train` for the usual ways.

        Args:
            bpe: the tokenizer of plain text, without added tokens.
            added: all special tokens by id.
            original_templates: the folder's other chat templates by name; `save` keeps them beside
                ours.
        """
        self._original_templates = original_templates or {}
        self._bpe = bpe
        self._added = dict(sorted(added.items()))
        self.special = SpecialTokens.from_ids(
            {token.content: index for index, token in added.items()}
        )
        self._call_tags = {
            token.content: index for index, token in added.items() if token.content in CALL_TAGS
        }
        self.required_vocab_size = (
            max(bpe.get_vocab_size() - 1, *dataclasses.astuple(self.special)) + 1
        )
        self.vocab_size = max(bpe.get_vocab_size() - 1, *added) + 1

    @classmethod
    def from_folder(cls, folder: PathLike) -> Self:
        """Reads the tokenizer of a Hugging Face folder, or of a bare Qwen2 vocabulary.

        The BPE is in `tokenizer.json`, or in `vocab.json` and `merges.txt`, or in another form that
        transformers can convert; the added tokens are in `tokenizer.json`, `tokenizer_config.json`
        or `added_tokens.json`. If those have none of Step-Audio's tokens, and the BPE is Qwen2's,
        they get Step-Audio's ids (`special_tokens.qwen2_special_tokens`).

        Raises:
            TextError: names the file and what is wrong with it: missing, malformed, not a
                byte-level BPE, or without some of the special tokens.
        """
        path = os.fspath(folder)
        return cls(
            *tokenizer_files.read_tokenizer(path), original_templates=read_original_templates(path)
        )

    @classmethod
    def byte_level(cls) -> Self:
        """Returns the tokenizer of small models: a token for each byte, its id the byte's value.

        With the special tokens it has 290.
        """
        return cls._from_merges([])

    @classmethod
    def train(cls, texts: Iterable[str], merges: int) -> Self:
        """Trains a small tokenizer: the 256 bytes, at most `merges` merges, the special tokens."""
        return cls._from_merges(train_merges(texts, merges))

    @classmethod
    def _from_merges(cls, merges: Sequence[tuple[str, str]]) -> Self:
        bpe = qwen2_tokenizer(byte_bpe(merges))
        layout = small_special_tokens(bpe.get_vocab_size())
        return cls(
            bpe,
            {
                index: AddedToken(content, special=True, normalized=False)
                for index, content in layout.items()
            },
        )

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of plain text, normalised to NFC; never a special token.

        Raises:
            TextError: the text has half of a surrogate pair, which is no character.
        """
        try:
            return self._bpe.encode(text, add_special_tokens=False).ids
        except TypeError:
            if not isinstance(text, str):
                raise
            index = next(
                index for index, character in enumerate(text) if "\ud800" <= character <= "\udfff"
            )
            raise TextError(
                f"text has half of a surrogate pair ({text[index]!a}) at character {index};"
                " remove it"
            ) from None

    def encode_written(self, text: str) -> list[int]:
        """Returns the tokens of text that the model writes, or has written: of a reply.

        They are those of `encode`, but that `<tool_call>` and `</tool_call>` around a call are the
        tokens of these names where the vocabulary has them.

        Raises:
            TextError: as of `encode`.
        """
        if not self._call_tags or "tool_call>" not in text:
            return self.encode(text)
        pieces = re.split(f"({'|'.join(map(re.escape, self._call_tags))})", text)
        return [
            token
            for piece in pieces
            for token in (
                [self._call_tags[piece]] if piece in self._call_tags else self.encode(piece)
            )
        ]

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of tokens: special ones by name, bytes that are not UTF-8 as U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes of a token, perhaps part of a character; of a special token its name.

        An id without a token, in the padding of a model's vocabulary, gives `<|unknown_ID|>`.

        Raises:
            TextError: a negative id.
        """
        if token < 0:
            raise TextError(f"{token} is not a token id")
        if token in self._added:
            return self._added[token].content.encode()
        symbols = self._bpe.id_to_token(token)
        if symbols is None:
            return f"<|unknown_{token}|>".encode()
        return bytes(SYMBOL_TO_BYTE[symbol] for symbol in symbols)

    def fingerprint(self) -> str:
        """Returns a hash of the BPE and all special tokens: equal if texts get the same tokens."""
        added = [(index, token.content) for index, token in self._added.items()]
        return hash_json([self._bpe.to_str(), added])

    def is_special(self, token: int) -> bool:
        """Returns whether a token is not text: a special token, or an id without a token.

        The tags around a call are text that the model writes.
        """
        if token in self._call_tags.values():
            return False
        return token in self._added or token < 0 or self._bpe.id_to_token(token) is None

    def save(self, folder: PathLike) -> None:
        """Writes the files from which transformers' `AutoTokenizer` makes the same tokenizer.

        They are `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, `vocab.json`,
        `merges.txt`, and `chat_template.jinja`, with which `apply_chat_template` renders messages
        as this project does. The folder is created.
        """
        tokenizer_files.write_tokenizer(os.fspath(folder), self._bpe, self._added, self.special)
        self.save_chat_template(folder)

    def save_chat_template(self, folder: PathLike) -> None:
        """Writes our chat template into a tokenizer folder, and the folder's own as `original`."""
        not_special = [token.content for token in self._added.values() if not token.special]
        write_chat_templates(os.fspath(folder), self._original_templates, not_special)
