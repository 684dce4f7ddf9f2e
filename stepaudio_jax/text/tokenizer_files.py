"""Tokenizer folders: read with every assumption checked, written as AutoTokenizer reads them."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, models

from stepaudio_jax.errors import TextError
from stepaudio_jax.storage import (
    copy_file,
    is_bucket_path,
    list_sizes,
    read_json,
    read_text,
    recognize_file,
    recognize_folder,
    to_path,
    truncate,
    write_text,
)
from stepaudio_jax.text.special_tokens import (
    BYTE_SYMBOLS,
    QWEN2_VOCAB_SIZE,
    QWEN25_TOKENS,
    STEP_AUDIO_TOKENS,
    SYMBOL_TO_BYTE,
    SpecialTokens,
    qwen2_special_tokens,
    qwen2_tokenizer,
)

_TOKENIZER_JSON, _VOCABULARY, _MERGES = "tokenizer.json", "vocab.json", "merges.txt"
_CONFIG, _ADDED_TOKENS, _SPECIAL_TOKENS_MAP = (
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
# transformers' name of a tokenizer whose two files `qwen2_tokenizer` reads.
_QWEN2_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
# Tokenizers in other forms, some of which transformers converts to a byte-level BPE.
_FOREIGN_FILES = ("tokenizer.model", "tiktoken.model", "tekken.json")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_MAX_SHOWN = 8
_MAX_TOKENIZER_BYTES = 1 << 26  # of one file of a tokenizer
_MAX_ID = (1 << 20) - 1
# Qwen2.5's tokens of tools and code infilling, which transformers does not skip as special.
_NON_SPECIAL_TOKENS = frozenset(QWEN25_TOKENS[QWEN25_TOKENS.index("<tool_call>") :])

AddedTokens = dict[int, AddedToken]


def read_tokenizer(folder: str) -> tuple[tokenizers.Tokenizer, AddedTokens]:
    """Returns the BPE, without added tokens, and the added tokens by id.

    Raises:
        TextError: see `Tokenizer.from_folder`.
    """
    if not to_path(folder).is_dir():
        reason = recognize_folder(folder, "tokenizer") or (
            f"does not exist; name a folder with {_TOKENIZER_JSON} or {_VOCABULARY} and {_MERGES}"
        )
        raise TextError(f"tokenizer folder {folder} {reason}")
    path = os.path.join(folder, _TOKENIZER_JSON)
    if to_path(path).is_file():
        bpe, added = _parse_tokenizer_json(read_json(path, TextError, "tokenizer"), path)
    elif _needs_transformers(folder):
        path = folder
        bpe, added = _parse_tokenizer_json(_convert_with_transformers(folder), path)
    else:
        path = os.path.join(folder, _VOCABULARY)
        bpe, added = _read_vocabulary(path, os.path.join(folder, _MERGES)), {}
    _check_bytes(bpe, path)
    for name, key in ((_CONFIG, "added_tokens_decoder"), (_ADDED_TOKENS, None)):
        extra = os.path.join(folder, name)
        if to_path(extra).is_file():
            _merge_added_tokens(added, _read_added(extra, key), extra)
    added = _add_missing_tokens(bpe, added, path)
    _check_not_spellable(bpe, added, path)
    return bpe, added


def write_tokenizer(
    folder: str,
    bpe: tokenizers.Tokenizer,
    added: Mapping[int, AddedToken],
    special: SpecialTokens,
) -> None:
    """Writes a tokenizer folder; see `Tokenizer.save`."""
    to_path(folder).mkdir(parents=True, exist_ok=True)
    content = json.loads(bpe.to_str())
    content["added_tokens"] = [
        {"id": index, "content": token.content, **_flags(token)} for index, token in added.items()
    ]
    named = {"eos_token": added[special.pad].content, "pad_token": added[special.pad].content}
    config: dict[str, Any] = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(index): {"content": token.content, **_flags(token)}
            for index, token in added.items()
        },
        **named,
        "bos_token": None,
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "split_special_tokens": False,
    }
    for name, value in (
        (_TOKENIZER_JSON, content),
        (_CONFIG, config),
        (_SPECIAL_TOKENS_MAP, named),
    ):
        indent = None if name == _TOKENIZER_JSON else 2
        text = json.dumps(value, ensure_ascii=False, indent=indent)
        write_text(os.path.join(folder, name), text)
    with tempfile.TemporaryDirectory() as local:
        bpe.model.save(local)
        for name in (_VOCABULARY, _MERGES):
            copy_file(os.path.join(local, name), os.path.join(folder, name))


def _needs_transformers(folder: str) -> bool:
    """Returns whether the vocabulary is in a form of another tokenizer than Qwen2's."""
    config = os.path.join(folder, _CONFIG)
    name = (
        read_json(config, TextError, "tokenizer").get("tokenizer_class")
        if to_path(config).is_file()
        else None
    )
    return name not in (None, *_QWEN2_CLASSES) or any(
        to_path(os.path.join(folder, file)).is_file() for file in _FOREIGN_FILES
    )


def _convert_with_transformers(folder: str) -> dict[str, Any]:
    """Returns the content of the `tokenizer.json` that transformers makes of a folder."""
    from transformers import AutoTokenizer  # seconds to import, and few folders need it

    try:
        with _local_tokenizer_files(folder) as local:
            tokenizer = AutoTokenizer.from_pretrained(
                local, local_files_only=True, trust_remote_code=False
            )
            return json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # whatever the class of tokenizer raises
        reason = truncate(" ".join(str(error).split()))
        raise TextError(
            f"tokenizer folder {folder} has no {_TOKENIZER_JSON}, and transformers cannot make one"
            f" ({reason}); save the tokenizer by AutoTokenizer where it can be read"
        ) from None


@contextlib.contextmanager
def _local_tokenizer_files(folder: str) -> Iterator[str]:
    """Yields a local folder with a tokenizer's files, for libraries that read no other."""
    if not is_bucket_path(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as local:
        for name, size in list_sizes(folder).items():
            if size <= _MAX_TOKENIZER_BYTES and not name.endswith(".safetensors"):
                copy_file(os.path.join(folder, name), os.path.join(local, name))
        yield local


def _parse_tokenizer_json(
    content: dict[str, Any], path: str
) -> tuple[tokenizers.Tokenizer, AddedTokens]:
    """Splits the content of a `tokenizer.json` into the BPE and the added tokens."""
    kind = (
        content.get("model", {}).get("type") if isinstance(content.get("model"), Mapping) else None
    )
    if kind != "BPE":
        raise TextError(
            f"{path}: the model is {kind!r}; only a byte-level BPE like Qwen2's can be used"
        )
    listed = content.get("added_tokens") or []
    if not isinstance(listed, list) or not all(
        isinstance(item, Mapping) and "id" in item for item in listed
    ):
        raise TextError(f"{path}: 'added_tokens' must be a list of objects with 'id' and 'content'")
    added = {_token_id(item["id"], path): _added_token(item, path) for item in listed}
    # Without added tokens, so that no text can spell them; the rest would make a text's tokens
    # depend on its context.
    content.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(content)), added
    except Exception as error:  # all that the library raises
        raise TextError(f"{path}: is not a tokenizer file ({error}); copy it again") from None


def _read_vocabulary(vocabulary: str, merges: str) -> tokenizers.Tokenizer:
    for path in (vocabulary, merges):
        if not to_path(path).is_file():
            folder = os.path.dirname(path)
            if finding := recognize_folder(folder, "tokenizer"):
                raise TextError(f"tokenizer folder {folder} {finding}")
            raise TextError(
                f"{path} does not exist; a tokenizer folder holds {_TOKENIZER_JSON},"
                f" or {_VOCABULARY} and {_MERGES}"
            )
    ids = read_json(vocabulary, TextError, "tokenizer")
    if (
        not ids
        or not all(type(index) is int for index in ids.values())
        or set(ids.values()) != set(range(len(ids)))
    ):
        raise TextError(
            f"{vocabulary}: must map each token to its id,"
            " the ids from 0 to the number of tokens - 1"
        )
    try:
        with _local_tokenizer_files(os.path.dirname(vocabulary)) as local:
            files = [os.path.join(local, name) for name in (_VOCABULARY, _MERGES)]
            bpe = models.BPE.from_file(*files)
    except Exception as error:  # all that the library raises
        reason = (
            recognize_file(merges, "tokenizer", is_text=True)
            or f"does not fit {vocabulary} ({error}); copy both again"
        )
        raise TextError(f"{merges}: {reason}") from None
    _check_merges(ids, merges)
    return qwen2_tokenizer(bpe)


def _check_merges(vocabulary: Mapping[str, int], merges: str) -> None:
    """Checks that every token has a merge: a truncated file would silently give shorter tokens."""
    merged = {line.replace(" ", "", 1) for line in read_text(merges).split("\n")}
    unreachable = [token for token in vocabulary if len(token) > 1 and token not in merged]
    if unreachable:
        raise TextError(
            f"{merges}: has no merge that makes {len(unreachable)} of the {len(vocabulary)} tokens"
            f" (as {unreachable[0]!r}): it is cut short, or of another tokenizer; copy it again"
        )


def _check_bytes(bpe: tokenizers.Tokenizer, path: str) -> None:
    """Checks that the BPE is byte-level: a byte without a token would silently vanish."""
    missing = [byte for byte, symbol in enumerate(BYTE_SYMBOLS) if bpe.token_to_id(symbol) is None]
    if missing:
        raise TextError(
            f"{path}: has no token for {len(missing)} of the 256 bytes;"
            " only a byte-level BPE can be used"
        )
    vocabulary = bpe.get_vocab(with_added_tokens=False)
    if max(vocabulary.values()) != len(vocabulary) - 1:
        raise TextError(
            f"{path}: has {len(vocabulary)} tokens and ids up to {max(vocabulary.values())};"
            " none may be left out"
        )
    foreign = sorted(token for token in vocabulary if not SYMBOL_TO_BYTE.keys() >= set(token))
    if foreign:
        raise TextError(
            f"{path}: has {foreign[0]!r}, which stands for no bytes;"
            " only a byte-level BPE can be used"
        )
    probe = "a  b\n1 你好🙂"
    tokens = bpe.encode(probe, add_special_tokens=False).tokens
    if bytes(SYMBOL_TO_BYTE[symbol] for token in tokens for symbol in token) != probe.encode():
        raise TextError(
            f"{path}: does not give back the text {probe!r};"
            " only a byte-level BPE like Qwen2's can be used"
        )


def _read_added(path: str, key: str | None) -> AddedTokens:
    content = read_json(path, TextError, "tokenizer")
    if key is None:
        return {
            _token_id(index, path): _added_token({"content": text}, path)
            for text, index in content.items()
        }
    listed = content.get(key) or {}
    if not isinstance(listed, Mapping) or not all(
        isinstance(item, Mapping) for item in listed.values()
    ):
        raise TextError(f"{path}: {key!r} must be an object from id to an object with 'content'")
    return {_token_id(index, path): _added_token(item, path) for index, item in listed.items()}


def _merge_added_tokens(added: AddedTokens, extra: Mapping[int, AddedToken], path: str) -> None:
    ids = {token.content: index for index, token in added.items()}
    for index, token in extra.items():
        if (
            added.get(index, token).content != token.content
            or ids.get(token.content, index) != index
        ):
            known = added[index].content if index in added else f"id {ids[token.content]}"
            raise TextError(
                f"{path}: gives {token.content!r} the id {index},"
                f" which contradicts the folder's {known!r}"
            )
        added.setdefault(index, token)


def _add_missing_tokens(bpe: tokenizers.Tokenizer, added: AddedTokens, path: str) -> AddedTokens:
    """Returns `added` with Step-Audio's tokens, if it had none, and with a token for every id."""
    base = bpe.get_vocab_size()
    contents = {token.content for token in added.values()}
    if len(contents) < len(added):
        raise TextError(
            f"{path}: gives several ids to one added token; copy the tokenizer's files again"
        )
    needed = [content for content in SpecialTokens.contents().values() if content not in contents]
    layout = qwen2_special_tokens() if base == QWEN2_VOCAB_SIZE else {}
    if needed and contents.isdisjoint(STEP_AUDIO_TOKENS):
        if not layout:
            raise TextError(
                f"{path}: has {base} tokens and none of Step-Audio's special tokens, whose ids are"
                f" known for Qwen2's {QWEN2_VOCAB_SIZE} only; give them in {_CONFIG}"
                " ('added_tokens_decoder')"
            )
        step_audio = {
            index: _special_token(content)
            for index, content in layout.items()
            if content not in QWEN25_TOKENS
        }
        _merge_added_tokens(added, step_audio, f"{path} with Step-Audio's tokens")
    elif needed:
        raise TextError(
            f"{path}: lacks the special tokens {', '.join(needed)};"
            " use a Step-Audio tokenizer or Qwen2's own"
        )
    # transformers numbers added tokens consecutively after the BPE's, so an id without a token
    # would shift all that follow.
    contents = {token.content for token in added.values()}
    for index in range(base, max(added)):
        if index not in added:
            name = layout.get(index, "")
            added[index] = _special_token(
                name if name and name not in contents else f"<|reserved_token_{index}|>"
            )
    return dict(sorted(added.items()))


def _check_not_spellable(
    bpe: tokenizers.Tokenizer, added: Mapping[int, AddedToken], path: str
) -> None:
    """Checks that no text can spell a special token: some tokenizers have them in the BPE too."""
    if all(bpe.id_to_token(index) is None for index in added):
        return
    spelled = sorted(
        token.content
        for index, token in added.items()
        if index in bpe.encode(token.content, add_special_tokens=False).ids
    )
    if spelled:
        raise TextError(
            f"{path}: text can spell the special tokens {', '.join(spelled[:_MAX_SHOWN])};"
            " they must not be in the BPE"
        )


def _special_token(content: str) -> AddedToken:
    return AddedToken(content, special=content not in _NON_SPECIAL_TOKENS, normalized=False)


def _added_token(item: Mapping[str, Any], path: str) -> AddedToken:
    content = item.get("content")
    if not isinstance(content, str) or not content:
        raise TextError(f"{path}: an added token must have 'content', a string, got {content!r}")
    flags = {
        "special": True,
        "normalized": False,
        **{name: bool(item[name]) for name in _FLAGS if name in item},
    }
    return AddedToken(content, **flags)


def _flags(token: AddedToken) -> dict[str, bool]:
    return {name: getattr(token, name) for name in _FLAGS}


def _token_id(value: Any, path: str) -> int:
    if isinstance(value, bool) or not str(value).isdecimal() or int(value) > _MAX_ID:
        raise TextError(f"{path}: {value!r} is not a token id (0 to {_MAX_ID})")
    return int(value)
