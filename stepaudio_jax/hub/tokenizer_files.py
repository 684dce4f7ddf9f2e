"""The tokenizer that lies beside weights."""

import pathlib
import shutil

from stepaudio_jax.hub.checkpoint import TOKENIZER, is_checkpoint
from stepaudio_jax.hub.errors import CheckpointError
from stepaudio_jax.text import Tokenizer

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


def load_tokenizer(folder: str | pathlib.Path) -> Tokenizer:
    """The tokenizer of a checkpoint, a Hugging Face folder, or a folder of tokenizer files.

    Raises:
        ValueError: the folder has none, or it cannot be read.
    """
    return Tokenizer.from_folder(tokenizer_folder(pathlib.Path(folder)))


def tokenizer_folder(folder: pathlib.Path) -> pathlib.Path:
    """Where the tokenizer's files lie."""
    return folder / TOKENIZER if is_checkpoint(folder) else folder


def copy_tokenizer(source: pathlib.Path, target: pathlib.Path, tokenizer: Tokenizer) -> None:
    """Copies a tokenizer's files, so that nothing a loader knows of is lost, and writes our chat template.

    Args:
        source: the folder of the files.
        target: where they go; created where it is not there.
        tokenizer: the one that `source` holds.

    Raises:
        CheckpointError: there are none.
    """
    files = [source / name for name in _FILES if (source / name).is_file()]
    if not files:
        raise CheckpointError(f"{source} has no tokenizer files")
    target.mkdir(exist_ok=True)
    for file in files:
        shutil.copyfile(file, target / file.name)
    tokenizer.save_chat_template(target)


def check_vocab_size(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuses a tokenizer that writes what has no row in the embedding.

    Raises:
        CheckpointError: saying how many rows it needs.
    """
    if tokenizer.required_vocab_size > vocab_size:
        raise CheckpointError(
            f"the tokenizer writes tokens up to {tokenizer.required_vocab_size - 1} and the vocabulary has {vocab_size} rows; "
            f"it needs at least {tokenizer.required_vocab_size}: choose another tokenizer, or a model with a larger decoder.vocab_size"
        )
