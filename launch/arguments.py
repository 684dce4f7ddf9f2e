"""Arguments shared by generate, score and evaluate: files, and how the model runs."""

import argparse
from typing import get_args

from stepaudio_jax.config import AudioChannel, DataConfig
from stepaudio_jax.storage import DiskCache, expand_home


def add_file_arguments(
    parser: argparse.ArgumentParser, *, input_help: str, output_help: str
) -> None:
    """Adds --model, --input and --output."""
    parser.add_argument(
        "--model",
        type=expand_home,
        required=True,
        help="a Hugging Face folder or a checkpoint of this project",
    )
    parser.add_argument("--input", type=expand_home, required=True, help=input_help)
    parser.add_argument("--output", type=expand_home, required=True, help=output_help)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --dtype, --tensor, --history-reasoning and what is said of the clips."""
    add_compute_arguments(parser)
    parser.add_argument(
        "--allow-urls", action="store_true", help="clips may be https:// URLs, which are then read"
    )
    parser.add_argument(
        "--clip-cache-dir",
        metavar="DIR",
        help="keep clips from gs://, s3:// and https:// on this disk, for later runs",
    )
    parser.add_argument(
        "--clip-cache-gb",
        type=float,
        default=DataConfig.clip_cache_gb,
        metavar="GB",
        help=f"most that is kept there (default {DataConfig.clip_cache_gb:g})",
    )


def add_compute_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --dtype, --tensor, --history-reasoning and --channel."""
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="default: bfloat16, on a CPU float32"
    )
    parser.add_argument(
        "--tensor",
        type=int,
        default=0,
        help="devices over which a layer is sharded (default: as many as divide its heads)",
    )
    parser.add_argument(
        "--history-reasoning",
        action="store_true",
        help="past turns keep their reasoning, for a model trained so",
    )
    parser.add_argument(
        "--channel",
        choices=get_args(AudioChannel),
        default=DataConfig.channel,
        help="what is used of a clip with several channels: the first, or their mean"
        f" (default {DataConfig.channel})",
    )


def clip_cache_of(options: argparse.Namespace) -> DiskCache | None:
    """Opens the cache of clips that the options ask for; None if they ask for none.

    Raises:
        ConfigError: its folder or size cannot be used.
    """
    from stepaudio_jax.data.clips import open_clip_cache

    return open_clip_cache(
        DataConfig(clip_cache_dir=options.clip_cache_dir, clip_cache_gb=options.clip_cache_gb)
    )
