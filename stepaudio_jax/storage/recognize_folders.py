"""Recognises what a folder is in which no model or no tokenizer could be found."""

import os
import re
from collections.abc import Callable, Iterable

from stepaudio_jax.storage.files import INCOMPLETE
from stepaudio_jax.storage.json_files import read_json_or_none
from stepaudio_jax.storage.messages import first_few
from stepaudio_jax.storage.paths import BucketPath, Path, PathLike, to_path
from stepaudio_jax.storage.recognize_files import (
    COPY_AGAIN,
    UNFINISHED_SUFFIXES,
    Finding,
    Purpose,
    recognize_file,
)

_CONFIG = "config.json"
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
_RESAVE_REMEDY = (
    "load it with transformers and save it again as safetensors with `model.save_pretrained(NEW)`"
)
# Weights in other formats, by the names of their files: what they are, and what to do.
_UNSUPPORTED_WEIGHTS = (
    (r".*\.gguf", "GGUF weights of llama.cpp", "get the model's safetensors weights"),
    (
        r".*\.(distcp|metadata)|mp_rank_.*|.*_model_states\.pt|zero_to_fp32\.py",
        "a sharded checkpoint of a training run with torch",
        "merge it into safetensors with the program that wrote it (`accelerate merge-weights`,"
        " `zero_to_fp32.py`)",
    ),
    (r".*\.(bin|pth|pt|ckpt)", "PyTorch pickles", _RESAVE_REMEDY),
    (r".*\.msgpack", "Flax weights", _RESAVE_REMEDY),
    (r".*\.(h5|keras)", "TensorFlow weights", _RESAVE_REMEDY),
    (r".*\.onnx", "an ONNX program", "get the model's safetensors weights"),
    (r".*\.nemo", "a NeMo archive", "export it from NeMo as a Hugging Face folder"),
    (r".*\.npz", "NumPy weights", "get the model's safetensors weights"),
)
_NON_WEIGHT_FILES = (
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
)
_FOREIGN_TOKENIZERS = {
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "qwen.tiktoken",
}


def recognize_folder(path: PathLike, purpose: Purpose) -> Finding | None:
    """Returns what a path is instead of a model's or tokenizer's folder; None if unknown.

    Args:
        path: where no model or no tokenizer could be found.
        purpose: "weights" or "tokenizer".
    """
    folder = to_path(path)
    if not folder.is_dir():
        return _not_a_folder(folder, purpose)
    if isinstance(folder, BucketPath) and (folder / INCOMPLETE).is_file():
        return Finding(
            "is still being written, or its writer was killed",
            "wait for it, or start that program again",
        )
    checks: tuple[Callable[[Path, Purpose], Finding | None], ...] = (
        _hub_cache,
        recognize_run,
        _inside_checkpoint,
        _broken_links,
        _adapter,
        _unfinished,
        _trainer_output,
        _unsupported_weights,
        _subfolders,
        _archive,
        _incomplete_model,
        _empty,
    )
    return next(filter(None, (check(folder, purpose) for check in checks)), None)


def unfinished_download(folder: PathLike) -> Finding | None:
    """Recognises a folder with files of unfinished downloads.

    The Hub's client writes them as `.cache/huggingface/download/*.incomplete` in a download folder,
    and as `blobs/*.incomplete` in its cache; browsers and other programs write them beside the
    other files.
    """
    folder = to_path(folder)
    places = [folder, folder / ".cache" / "huggingface" / "download"]
    if folder.parent.name == "snapshots":
        places.append(folder.parent.parent / "blobs")
    files = [
        file
        for place in places
        for file in (place.rglob("*.incomplete") if place.name == "download" else _entries(place))
        if file.name.endswith(UNFINISHED_SUFFIXES) and file.is_file()
    ]
    if not files:
        return None
    return Finding(
        f"is an unfinished download ({first_few(sorted(file.name for file in files))})",
        "run the same download again until it says that it is done",
    )


def _not_a_folder(path: Path, purpose: Purpose) -> Finding | None:
    text = os.fspath(path)
    if isinstance(path, BucketPath) and not path.exists():
        return Finding("is not in its bucket", "correct the path")
    if path.is_symlink() and not path.exists():
        return Finding(
            f"is a link to {os.readlink(path)}, which does not exist",
            "correct the link, or name the folder itself",
        )
    if path.exists():
        if path.name.endswith(_ARCHIVES):
            return recognize_file(path, purpose)
        if purpose == "weights" and (other := _match_unsupported_weights([path.name])):
            return Finding(f"is a file of {other[0]}", other[2])
        return Finding(
            "is a file and not a folder", f"name the folder that holds it, {path.parent}"
        )
    if re.match(r"(gs|s3|gcs|hdfs|az|abfss?):/", text):
        return Finding("has lost slashes of its address", "write it with two, as in gs://BUCKET/..")
    address = re.match(
        r"(?:https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/|hf:/+)([\w.-]+/[\w.-]+)", text
    )
    name = address[1] if address else text if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) else None
    # `runs/sft` beside an existing `runs/` is a path with a mistake in it.
    if name and (address or not path.parent.exists()):
        return Finding(
            "is not a folder on this machine",
            "if it is a repository of the Hub, download it:"
            f" `hf download {name} --local-dir {name.split('/')[1]}`",
        )
    if re.match(r"https?:/", text):
        return Finding(
            "is an address of the web", "download it first, and name the folder it is in"
        )
    return None


def _hub_cache(folder: Path, purpose: Purpose) -> Finding | None:
    """Recognises the Hub's cache, a repository in it, or a folder in a repository."""
    if folder.name in ("snapshots", "blobs", "refs") and (folder.parent / "snapshots").is_dir():
        folder = folder.parent
    if _is_repository(folder):
        if re.match(r"(datasets|spaces)--", folder.name):
            return Finding(
                f"is a folder of the Hub's cache for {folder.name.partition('--')[0]}",
                "name a model's",
            )
        snapshot = _snapshot(folder)
        repository = folder.name.removeprefix("models--").replace("--", "/")
        if snapshot is None or not any(snapshot.iterdir()):
            return unfinished_download(snapshot or folder / "snapshots" / "none") or Finding(
                "is a folder of the Hub's cache without a snapshot",
                f"download it again: `hf download {repository}`",
            )
        return Finding(
            "is a folder of the Hub's cache, not the model in it", f"name its snapshot, {snapshot}"
        )
    caches = (folder, folder / "hub") if folder.name != "hub" else (folder,)
    models = [
        entry for cache in caches for entry in _entries(cache) if entry.name.startswith("models--")
    ]
    snapshots = [str(snapshot) for model in models if (snapshot := _snapshot(model)) is not None]
    if snapshots:
        return Finding(
            "is the Hub's cache",
            f"name the snapshot of one model in it: {first_few(snapshots, ' or ')}",
        )
    return None


def _is_repository(folder: Path) -> bool:
    return (folder / "snapshots").is_dir() and (
        re.match(r"(models|datasets|spaces)--", folder.name) is not None
        or (folder / "blobs").is_dir()
    )


def _snapshot(repository: Path) -> Path | None:
    """Returns the snapshot to which `main` refers, or the newest."""
    snapshots = [entry for entry in _entries(repository / "snapshots") if entry.is_dir()]
    try:
        named = repository / "snapshots" / (repository / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        named = None
    if named in snapshots:
        return named
    return max(snapshots, key=lambda snapshot: snapshot.stat().st_mtime, default=None)


def recognize_run(folder: Path, purpose: Purpose) -> Finding | None:
    """Recognises the folder of a run of this project, or a folder among its checkpoints.

    A run has `config.json`, `metrics.jsonl`, `checkpoints/` and, once it is finished, `model/`.
    """
    for run in (folder, *[*folder.absolute().parents][:4]):
        is_inside = run != folder
        if is_inside and "checkpoints" not in folder.absolute().relative_to(run).parts:
            continue
        if not _is_run(run):
            continue
        what = (
            "holds checkpoints of a training run"
            if is_inside
            else "is the folder of a training run"
        )
        model = run / "model"
        if (model / _CONFIG).is_file() and not is_inside:
            inner = (
                model / "tokenizer"
                if purpose == "tokenizer" and (model / "tokenizer").is_dir()
                else model
            )
            return Finding(f"{what}, not its model", f"name {inner}")
        take = (
            f"take the model out of a checkpoint: `python -m launch.checkpoint {run} --output DIR`,"
            " and name DIR"
        )
        if is_inside:
            return Finding(f"{what}, not a model", take)
        if (folder / "checkpoints").is_dir():
            return Finding(f"{what} that has no finished model", take)
        return Finding(
            f"{what} that has neither a finished model nor checkpoints", "train it first"
        )
    return None


def _is_run(folder: Path) -> bool:
    """Returns whether a folder is a run, by its `config.json`, or else by its other files."""
    values = read_json_or_none(folder / _CONFIG)
    if isinstance(values, dict):
        return "stages" in values and "model_type" not in values
    if not (folder / _CONFIG).exists():
        kept = [
            name for name in ("metrics.jsonl", "checkpoints", "model") if (folder / name).exists()
        ]
        return len(kept) >= 2 or (folder / "model" / "parameters").is_dir()
    return False


def _inside_checkpoint(folder: Path, purpose: Purpose) -> Finding | None:
    """Recognises a part of this project's checkpoints, or of any Orbax checkpoint."""
    if purpose == "tokenizer" and _has_tokenizer(folder / "tokenizer"):
        return Finding("is a model", f"name its tokenizer, {folder / 'tokenizer'}")
    for parent in [*folder.absolute().parents][:2]:
        if isinstance(
            values := read_json_or_none(parent / _CONFIG), dict
        ) and "stepaudio_jax" in str(values.get("format")):
            return Finding("is a part of a model", f"name the folder of all of it, {parent}")
    if (folder / "_METADATA").is_file() or (folder / "_CHECKPOINT_METADATA").is_file():
        return Finding(
            "is a tree of Orbax without a model's config.json",
            "name the folder of a model that this project wrote",
        )
    return None


def _broken_links(folder: Path, purpose: Purpose) -> Finding | None:
    broken = [
        entry
        for entry in _entries(folder)
        if _is_model_file(entry.name) and entry.is_symlink() and not entry.exists()
    ]
    if not broken:
        return None
    return Finding(
        f"holds links to files that do not exist ({broken[0].name} -> {os.readlink(broken[0])})",
        "copy the files themselves, with `cp -rL`, or download them again",
    )


def _adapter(folder: Path, purpose: Purpose) -> Finding | None:
    """Recognises a PEFT adapter without a model."""
    config = read_json_or_none(folder / "adapter_config.json")
    if not (folder / "adapter_config.json").is_file() and not list(folder.glob("adapter_model.*")):
        return None
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    of = f" for {base}" if isinstance(base, str) and base else ""
    if purpose == "tokenizer":
        return Finding(
            f"is a PEFT adapter{of}, without a tokenizer",
            "name the folder of the model that it adapts",
        )
    return Finding(
        f"is a PEFT adapter{of}, not a model",
        "merge the two: `python -m tools.convert_weights import --source BASE "
        f"--adapter {folder} --output MODEL`, BASE being the folder of the model that it adapts",
    )


def _unfinished(folder: Path, purpose: Purpose) -> Finding | None:
    return unfinished_download(folder)


def _trainer_output(folder: Path, purpose: Purpose) -> Finding | None:
    """Recognises the output folder of transformers' Trainer, or of a program built on it."""
    numbered = {
        int(match[1]): entry
        for entry in _entries(folder)
        if (match := re.fullmatch(r"checkpoint-(\d+)", entry.name)) and entry.is_dir()
    }
    if not numbered:
        return None
    last = numbered[max(numbered)]
    return Finding(
        "is the output folder of a trainer and holds its checkpoints",
        f"name one of them, as {last}",
    )


def _unsupported_weights(folder: Path, purpose: Purpose) -> Finding | None:
    """Recognises weights in a format that this project does not read."""
    if purpose != "weights":
        return None
    names = [entry.name for entry in _entries(folder) if entry.name not in _NON_WEIGHT_FILES]
    if other := _match_unsupported_weights(names):
        return Finding(f"holds {other[0]} ({first_few(other[1])}) and no safetensors", other[2])
    return None


def _match_unsupported_weights(names: Iterable[str]) -> tuple[str, list[str], str] | None:
    """Returns the kind of other weights among file names, those names, and what to do."""
    for pattern, what, remedy in _UNSUPPORTED_WEIGHTS:
        matching = [name for name in names if re.fullmatch(pattern, name)]
        if matching:
            return what, matching, remedy
    return None


def _archive(folder: Path, purpose: Purpose) -> Finding | None:
    archives = [
        entry for entry in _entries(folder) if entry.is_file() and entry.name.endswith(_ARCHIVES)
    ]
    if not archives:
        return None
    return Finding(
        f"holds an archive ({first_few([archives[0].name])})",
        "unpack it, and name the folder with config.json in it",
    )


def _subfolders(folder: Path, purpose: Purpose) -> Finding | None:
    """Recognises a folder that has the model or tokenizer in a subfolder."""
    if (folder / _CONFIG).is_file() and purpose == "weights":
        return None
    wanted = _has_tokenizer if purpose == "tokenizer" else lambda entry: (entry / _CONFIG).is_file()
    entries = [entry / "model" if _is_run(entry) else entry for entry in _entries(folder)]
    names = [str(entry) for entry in entries if entry.is_dir() and wanted(entry)]
    if not names:
        return None
    what = "has no tokenizer" if purpose == "tokenizer" else "has no config.json"
    return Finding(what, f"name the subfolder that is meant: {first_few(names, ' or ')}")


def _incomplete_model(folder: Path, purpose: Purpose) -> Finding | None:
    """Recognises an incomplete model, and says what is missing."""
    names = {entry.name for entry in _entries(folder)}
    has_weights = any(name.endswith(".safetensors") for name in names)
    if purpose == "tokenizer":
        foreign = sorted(names & _FOREIGN_TOKENIZERS)
        if foreign:
            return Finding(
                f"holds a tokenizer of another kind ({', '.join(foreign)})",
                "name the folder of a Step-Audio or Qwen2 tokenizer",
            )
        if has_weights or _CONFIG in names:
            return Finding(
                "holds a model without a tokenizer (neither tokenizer.json nor vocab.json and"
                " merges.txt)",
                "copy them into it, or name a folder that has them as the tokenizer",
            )
        return None
    if has_weights and _CONFIG not in names:
        return Finding("holds weights and no config.json", "copy the model's config.json into it")
    if isinstance(values := read_json_or_none(folder / _CONFIG), dict) and "stepaudio_jax" in str(
        values.get("format")
    ):
        return (
            None
            if (folder / "parameters").is_dir()
            else Finding("is a model without its parameters/", COPY_AGAIN)
        )
    if _CONFIG in names and not has_weights:
        return Finding(
            "has a config.json and no weights (neither an index nor *.safetensors)",
            "download the weights too",
        )
    if not has_weights and names & set(_TOKENIZER_FILES):
        return Finding("holds a tokenizer and no model", "name the folder of the model's weights")
    return None


def _empty(folder: Path, purpose: Purpose) -> Finding | None:
    return (
        None
        if _entries(folder)
        else Finding(
            "is an empty folder", "download or copy the model into it, or correct the path"
        )
    )


def _is_model_file(name: str) -> bool:
    """Returns whether a file of a model's folder is read, by its name."""
    return name.endswith((".json", ".safetensors", ".txt", ".jinja"))


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError:
        return []
