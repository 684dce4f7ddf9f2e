"""Converts weights between Hugging Face's format and this project's checkpoints.

python -m tools.convert_weights COMMAND:

    import  --source DIR [--encoder-source DIR] [--adapter PEFT_DIR] --output CKPT
    export  --source CKPT --output DIR [--dtype bfloat16] [--max-shard-size 5GB]
    export  --source CKPT --output PEFT_DIR --adapter [--base DIR]
    random  --preset tiny|mini_8b|r1_32b --output DIR [--tokenizer DIR] [--seed 0]
    inspect DIR
"""

import argparse
import dataclasses
import logging
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
from tqdm import tqdm

from stepaudio_jax import hub
from stepaudio_jax.config import ModelConfig, check_seed
from stepaudio_jax.errors import CheckpointError, StepAudioError
from stepaudio_jax.storage import truncate_words, user_path
from stepaudio_jax.text import Tokenizer

_DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
_VOCAB_MULTIPLE = 64
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, 2 after a user's mistake, or 130 after an interruption."""
    options = _parser().parse_args(arguments)
    # Converting needs no accelerator, and must not take one from a running job.
    jax.config.update("jax_platforms", "cpu")
    # Orbax logs tracebacks of the errors that it also raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # SIGTERM raises KeyboardInterrupt, so that a half-written folder is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return options.run(options)
    except (StepAudioError, OSError) as error:
        print(f"error: {truncate_words(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 130


def _import(options: argparse.Namespace) -> int:
    with _ProgressBar() as bar:
        sources = hub.import_weights(
            options.source,
            options.output,
            encoder_source=options.encoder_source,
            tokenizer=options.tokenizer,
            adapter=options.adapter,
            dtype=_DTYPES[options.dtype] if options.dtype else None,
            vocab_size=options.vocab_size,
            seed=check_seed(options.seed),
            progress=bar.show,
        )
    for part, source in sources.items():
        print(f"{part}: {source}")
    print(f"wrote {options.output}")
    return 0


def _export(options: argparse.Namespace) -> int:
    hub.check_is_checkpoint(options.source)
    if options.adapter:
        return _export_adapter(options)
    if options.base:
        raise CheckpointError("--base says which model an adapter is for: it goes with --adapter")
    lora = hub.checkpoint_lora_config(options.source)
    with _ProgressBar() as bar:
        hub.export_weights(
            options.source,
            options.output,
            dtype=_DTYPES[options.dtype] if options.dtype else None,
            max_shard_bytes=options.max_shard_size,
            form=options.config_form,
            remote_code=options.remote_code,
            progress=bar.show,
        )
    print(f"wrote {options.output}")
    if lora is not None:
        dtype = options.dtype or "float32"
        print(
            f"its LoRA adapter of rank {lora.rank} was merged in float32, and all weights are"
            f" {dtype}"
        )
        if dtype != "float32":
            print(f"what is small beside a weight is rounded away in {dtype}; see docs/lora.md")
    return 0


def _export_adapter(options: argparse.Namespace) -> int:
    defaults = {
        "dtype": None,
        "remote_code": "",
        "max_shard_size": hub.MAX_SHARD_BYTES,
        "config_form": "nested",
    }
    for name, default in defaults.items():
        if getattr(options, name) != default:
            flag = "--" + name.replace("_", "-")
            raise CheckpointError(
                f"{flag} is for exporting a model: an adapter is small, and always in float32"
            )
    adapter = hub.export_adapter(options.source, options.output, base=options.base)
    lora = adapter.lora
    print(
        f"wrote {options.output}: rank {lora.rank}, alpha {lora.alpha:g}, {', '.join(lora.targets)}"
    )
    print(
        "it holds what LoRA has learnt of the decoder; encoder and adaptor are exported without"
        " --adapter"
    )
    return 0


def _random(options: argparse.Namespace) -> int:
    config = ModelConfig.presets()[options.preset]
    decoder = config.decoder
    if options.layers is not None:
        decoder = dataclasses.replace(decoder, layers=options.layers)
    if options.tokenizer:
        tokenizer = hub.load_tokenizer(options.tokenizer)
        origin = f"tokenizer of {options.tokenizer}"
    else:
        tokenizer = Tokenizer.byte_level()
        origin = "byte tokenizer (no --tokenizer was given)"
    if tokenizer.required_vocab_size > decoder.vocab_size:
        decoder = dataclasses.replace(decoder, vocab_size=_round_up(tokenizer.required_vocab_size))
    config = dataclasses.replace(config, decoder=decoder)
    with _ProgressBar() as bar:
        hub.write_random_weights(
            config,
            options.output,
            tokenizer=tokenizer,
            seed=check_seed(options.seed),
            dtype=_DTYPES[options.dtype],
            max_shard_bytes=options.max_shard_size,
            form=options.config_form,
            progress=bar.show,
        )
    preset_rows = ModelConfig.presets()[options.preset].decoder.vocab_size
    enlarged = f" (the preset has {preset_rows})" if decoder.vocab_size != preset_rows else ""
    print(
        f"wrote {options.output}: {origin}, {tokenizer.vocab_size} tokens for"
        f" {decoder.vocab_size} rows{enlarged}"
    )
    return 0


def _inspect(options: argparse.Namespace) -> int:
    summary = hub.inspect_folder(options.folder)
    model = summary.model
    dtypes = ", ".join(f"{name} x {count}" for name, count in sorted(summary.dtypes.items()))
    lines = [
        f"kind        {summary.kind}",
        f"parts       {', '.join(summary.parts)}",
        f"tensors     {summary.tensors}",
        f"parameters  {summary.parameters:,}",
        f"bytes       {summary.bytes:,}",
        f"dtypes      {dtypes}",
    ]
    for part in summary.parts:
        values = dataclasses.asdict(getattr(model, part))
        lines.append(f"{part:<11} {', '.join(f'{name}={value}' for name, value in values.items())}")
    if summary.skipped_tensors:
        lines.append(
            f"left out    {len(summary.skipped_tensors)} that follow from the rest, as"
            f" {summary.skipped_tensors[0]}"
        )
    if summary.problems:
        lines += [
            f"problems    {len(summary.problems)}",
            *(f"  {problem}" for problem in summary.problems),
        ]
    else:
        lines.append("problems    none")
    print("\n".join(lines))
    if summary.problems:
        print(
            f"error: {options.folder} is not whole: {len(summary.problems)} problems, listed above",
            file=sys.stderr,
        )
        return 2
    return 0


def _round_up(vocab_size: int) -> int:
    """Returns the next multiple of 64 rows, which divides over the devices of most meshes."""
    return -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


class _ProgressBar:
    """Shows a progress bar, on a terminal only."""

    def __enter__(self) -> "_ProgressBar":
        self._bar: Any = tqdm(total=None, unit="B", unit_scale=True, disable=None, leave=False)
        return self

    def show(self, done: int, total: int) -> None:
        """Shows how many bytes of all are written."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _parse_size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    if not match or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5GB, 500MB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.convert_weights", description="Hugging Face <-> Orbax checkpoints."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("import", help="Hugging Face folders -> a checkpoint")
    command.set_defaults(run=_import)
    command.add_argument(
        "--source", type=user_path, required=True, help="a Step-Audio, Qwen2 or Qwen2.5 folder"
    )
    command.add_argument(
        "--encoder-source",
        type=user_path,
        help="a Qwen2-Audio or Step-Audio folder for the encoder",
    )
    command.add_argument(
        "--tokenizer",
        type=user_path,
        help="a folder with the tokenizer; that of --source by default",
    )
    command.add_argument(
        "--adapter", type=user_path, help="a PEFT adapter (LoRA) for the decoder, kept beside it"
    )
    command.add_argument("--output", type=user_path, required=True, help="the checkpoint to create")
    command.add_argument(
        "--dtype", choices=_DTYPES, help="cast the weights; by default they stay as they are"
    )
    command.add_argument(
        "--vocab-size",
        type=int,
        help="rows of the embedding; 158720 as released; by default those of --source",
    )
    command.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of what is newly initialised (adaptor, added rows)",
    )

    command = commands.add_parser("export", help="a checkpoint -> a Hugging Face folder")
    command.set_defaults(run=_export)
    command.add_argument("--source", type=user_path, required=True, help="a checkpoint")
    command.add_argument("--output", type=user_path, required=True, help="the folder to create")
    command.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="cast the weights; by default they stay as they are, and are float32 where an adapter"
        " is merged into them",
    )
    command.add_argument(
        "--adapter",
        action="store_true",
        help="write only what LoRA has learnt, as a PEFT adapter, and no weights",
    )
    command.add_argument(
        "--base",
        default="",
        help="with --adapter: the model it is for, as its config is to name it",
    )
    command.add_argument(
        "--remote-code",
        default="",
        help="a Hub repository with the modelling code, for trust_remote_code",
    )
    _add_output_options(command)

    command = commands.add_parser("random", help="a Hugging Face folder with random weights")
    command.set_defaults(run=_random)
    command.add_argument("--preset", choices=ModelConfig.presets(), required=True)
    command.add_argument("--output", type=user_path, required=True, help="the folder to create")
    command.add_argument(
        "--tokenizer",
        type=user_path,
        help="a folder with the tokenizer; a byte tokenizer by default",
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--layers", type=int, help="layers of the decoder, in place of the preset's"
    )
    command.add_argument("--dtype", choices=_DTYPES, default="bfloat16")
    _add_output_options(command)

    command = commands.add_parser("inspect", help="what a folder holds, and whether it is whole")
    command.set_defaults(run=_inspect)
    command.add_argument("folder", type=user_path)
    return parser


def _add_output_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--max-shard-size",
        type=_parse_size,
        default=hub.MAX_SHARD_BYTES,
        help="such as 5GB or 500MB",
    )
    command.add_argument(
        "--config-form", choices=("nested", "flat"), default="nested", help="form of config.json"
    )


if __name__ == "__main__":
    sys.exit(main())
