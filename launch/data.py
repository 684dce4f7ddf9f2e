"""Looks into data, checks what a run would read, and converts data to the project's own form.

    python -m launch.data inspect PATH                 what a file or folder of dialogues is
    python -m launch.data check --config=FILE          what a run would read; overrides as of
                                                       launch.train: --config.key=value
    python -m launch.data convert PATH --output DIR    the same records in the project's own form,
                                                       which pods read fast
    python -m launch.data preferences FOLDER           records of what people preferred, from the
                                                       folder of launch.serve --preferences
    python -m launch.data forget FOLDER --annotator X  removes all of somebody's from that folder

PATH is whatever a source of a configuration can be: a file, a pattern in quotes, a folder, or
tfds:NAME/CONFIG:SPLIT. Interrupted (Ctrl-C) and started again, `convert` goes on; finished, it is
not done again. Rows that cannot be read are listed, and the exit code is then 2.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from launch.errors import exit_on_error
from stepaudio_jax.config import AudioChannel, DataConfig, SourceConfig
from stepaudio_jax.errors import EXIT_USER_ERROR, ConfigError
from stepaudio_jax.storage import PathLike, expand_home, truncate_words, user_path

if TYPE_CHECKING:
    from stepaudio_jax.data.conversion import ConversionSummary

_SHOWN_ROWS = 3


def main(arguments: Sequence[str]) -> int:
    """Parses arguments and runs a command; returns the exit code."""
    # The devices may be those of a run in progress, and nothing here needs them.
    os.environ["JAX_PLATFORMS"] = "cpu"
    parser = _parser()
    if arguments and arguments[0] == "check" and {"--help", "-h"}.isdisjoint(arguments):
        return _check(list(arguments[1:]))
    options = parser.parse_args(arguments)
    commands = {
        "inspect": _inspect,
        "convert": _convert,
        "preferences": _write_preferences,
        "forget": _forget,
    }
    return commands[options.command](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser(
        "inspect",
        usage="%(prog)s PATH [options]",
        help="says in a few lines what a source is",
    )
    _add_source_arguments(inspect)
    inspect.add_argument("--limit", type=_positive, help="rows to read (default: all)")
    inspect.add_argument(
        "--tokenizer",
        type=expand_home,
        help="a folder with the tokenizer of a model (default: each byte of text is a token)",
    )
    inspect.add_argument("--seq-len", type=_positive, help="counts dialogues of more tokens")
    commands.add_parser(
        "check",
        usage="%(prog)s --config=FILE [--config.key=value ...]",
        help="says what a run would read, and which of it cannot be used",
        description="Checks all data of a run as launch.train does, and writes nothing.",
    )
    convert = commands.add_parser(
        "convert",
        usage="%(prog)s PATH --output DIR [options]",
        help="writes a source in the project's own form",
    )
    _add_source_arguments(convert)
    convert.add_argument("--output", type=user_path, required=True, help="the folder to create")
    convert.add_argument(
        "--container",
        choices=("jsonl", "array_record"),
        default="jsonl",
        help="jsonl: the clips are files beside it; array_record: inside (default jsonl)",
    )
    size = convert.add_mutually_exclusive_group()
    size.add_argument("--shards", type=_positive, help="files to write")
    size.add_argument(
        "--shard-mb",
        type=_positive,
        help="about how many megabytes a file has with its sound (default 256)",
    )
    convert.add_argument("--workers", type=_positive, help="processes (default: one for each core)")
    convert.add_argument("--name", help="of the files and of the source (default: PATH's)")
    convert.add_argument(
        "--channel",
        choices=get_args(AudioChannel),
        default=DataConfig.channel,
        help="what is used of a clip with several channels: the first, or their mean"
        f" (default {DataConfig.channel})",
    )
    preferences = commands.add_parser(
        "preferences",
        usage="%(prog)s FOLDER [--output FILE]",
        help="writes records of what people preferred",
        description="Writes what people said as records that launch.judge data and stages of RL"
        " read. A server may be running meanwhile.",
    )
    preferences.add_argument("folder", metavar="FOLDER", type=expand_home)
    preferences.add_argument(
        "--output", type=expand_home, metavar="FILE", help="default: records.jsonl in FOLDER"
    )
    forget = commands.add_parser(
        "forget",
        usage="%(prog)s FOLDER --annotator NAME",
        help="removes all of somebody's from a folder of preferences",
        description="Removes somebody's verdicts, comparisons, consent, recordings, and annotations"
        " of prepared pairs. The server must be stopped.",
    )
    forget.add_argument("folder", metavar="FOLDER", type=expand_home)
    forget.add_argument("--annotator", metavar="NAME", required=True)
    return parser


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds PATH and what a configuration may say of a source, see `SourceConfig`."""
    parser.add_argument("path", metavar="PATH", help="a file, pattern, folder or tfds:NAME")
    parser.add_argument("--format", default="auto", help="the form of its rows (default auto)")
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="KEY=COLUMN",
        help="the row's key for each of ours, as audio=speech text=sentence",
    )
    parser.add_argument("--prompt", help="the request in rows of a clip and its text only")
    parser.add_argument("--split", help="of a dataset with several")
    parser.add_argument("--allow-urls", action="store_true", help="clips may be https:// URLs")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _source_config(options: argparse.Namespace) -> SourceConfig:
    columns: dict[str, str] = {}
    for pair in options.columns:
        key, equals, column = pair.partition("=")
        if not equals:
            raise ConfigError(f"--columns: cannot read {pair!r}; write KEY=COLUMN")
        columns[key] = column
    return SourceConfig(
        path=options.path,
        name=getattr(options, "name", None),
        format=options.format,
        columns=columns,
        prompt=options.prompt,
        split=options.split,
    )


def _inspect(options: argparse.Namespace) -> int:
    with exit_on_error():
        from stepaudio_jax.data.inspection import inspect_source
        from stepaudio_jax.data.inspection_report import describe
        from stepaudio_jax.data.source import Source
        from stepaudio_jax.text import Tokenizer

        source = Source(_source_config(options))
        settings: Any = {
            "limit": options.limit,
            "tokenizer": Tokenizer.from_folder(options.tokenizer) if options.tokenizer else None,
            "seq_len": options.seq_len,
        }
        inspection = inspect_source(source, allow_urls=options.allow_urls, **settings)
        for line in describe(source, inspection, **settings):
            print(truncate_words(line))
        if not inspection.refused:
            return 0
        place, reason = inspection.refused[0]
        rows = inspection.content.records + len(inspection.refused)
        problem = f"{len(inspection.refused)} of {rows} rows cannot be read; the first: "
        print(f"error: {truncate_words(f'{problem}{place}: {reason}')}", file=sys.stderr)
        return EXIT_USER_ERROR


def _check(arguments: list[str]) -> int:
    with exit_on_error():
        from launch.train import parse_arguments

        config, distributed = parse_arguments(arguments)
        if distributed:
            raise ConfigError(f"{distributed[0]}: a check is made by one process; leave it out")
        from stepaudio_jax._front_door import check_data
        from stepaudio_jax.data.check_report import describe_check

        for checked in check_data(config):
            for line in describe_check(checked):
                print(truncate_words(line))
        return 0


def _convert(options: argparse.Namespace) -> int:
    with exit_on_error(
        f"finished files are kept in {options.output}; the same command goes on from there"
    ):
        from stepaudio_jax.data.conversion import convert_source

        summary = convert_source(
            _source_config(options),
            options.output,
            container=options.container,
            shards=options.shards,
            shard_mb=options.shard_mb,
            workers=options.workers,
            channel=options.channel,
            allow_urls=options.allow_urls,
        )
        return _print_summary(summary, options.output)


def _write_preferences(options: argparse.Namespace) -> int:
    with exit_on_error("start the same command again"):
        from stepaudio_jax.serving.preferences.records import write_records

        written = write_records(options.folder, options.output)
        target = options.output or os.path.join(options.folder, "records.jsonl")
        print(f"{written.replies} records of two replies in {target}")
        if written.dialogues:
            print(f"{written.dialogues} records of two dialogues in dialogues.jsonl beside it")
        print(f"{written.verdicts} verdicts; {written.skipped} comparisons without one, left out")
        return 0


def _forget(options: argparse.Namespace) -> int:
    with exit_on_error("start the same command again; it goes on"):
        from stepaudio_jax.serving.preferences.forgetting import forget_annotator

        removed = forget_annotator(options.folder, options.annotator)
        print(
            f"removed of {options.annotator}: {removed.verdicts} verdicts, {removed.assignments}"
            f" comparisons, {removed.consents} consents, {removed.clips} recordings,"
            f" {removed.annotations} annotations of prepared pairs"
        )
        print("files that were made of the folder before, elsewhere, must be made again")
        return 0


def _print_summary(summary: "ConversionSummary", output: PathLike) -> int:
    print(summary if summary.is_new else f"already converted: {summary}")
    for row in summary.skipped[:_SHOWN_ROWS]:
        print(truncate_words(f"skipped: {row.place}: {row.reason}"), file=sys.stderr)
    if summary.skipped:
        rows = "1 row" if len(summary.skipped) == 1 else f"{len(summary.skipped)} rows"
        listed = os.path.join(output, "skipped.jsonl")
        print(f"error: {rows} could not be read; listed in {listed}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
