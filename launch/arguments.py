"""Arguments shared by `launch.generate` and `launch.score`: files, and how the model runs."""

import argparse
from typing import get_args

from stepaudio_jax.config import AudioChannel, DataConfig
from stepaudio_jax.storage import expand_home


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
    """Adds --dtype, --tensor, --history-reasoning, --channel and --allow-urls."""
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
    parser.add_argument(
        "--allow-urls", action="store_true", help="clips may be https:// URLs, which are then read"
    )
