"""Serves a model to OpenAI's clients and to people's browsers.

    python -m launch.serve --model DIR [--port 8000] [--slots 16] [--tensor N]

It answers at http://HOST:PORT/v1/chat/completions once /health says so; the page is at /. Ctrl-C
and SIGTERM let running replies end first; a second one ends at once.
"""

import argparse
import sys
from collections.abc import Sequence

from launch.errors import exit_on_error
from stepaudio_jax.serving.settings import ServingSettings
from stepaudio_jax.storage import expand_home


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses arguments and serves; returns the exit code."""
    options = make_parser().parse_args(arguments)
    with exit_on_error():
        settings = settings_of(options)
        from stepaudio_jax.serving.server import serve

        return serve(settings)
    raise AssertionError("the program has ended")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the program's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        type=expand_home,
        required=True,
        help="a Hugging Face folder or a checkpoint of this project",
    )
    _add_access_arguments(parser)
    _add_limit_arguments(parser)
    return parser


def _add_access_arguments(parser: argparse.ArgumentParser) -> None:
    default = ServingSettings
    parser.add_argument("--host", default=default.host, help="default %(default)s: this machine")
    parser.add_argument("--port", type=int, default=default.port, help="default %(default)s")
    parser.add_argument(
        "--api-key", action="append", default=[], metavar="KEY", help="may be given several times"
    )
    parser.add_argument(
        "--api-key-file",
        type=expand_home,
        metavar="FILE",
        help="keys, one a line",
    )
    parser.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a site whose pages may use the server (default: none)",
    )
    parser.add_argument(
        "--audio-domain",
        action="append",
        default=[],
        metavar="DOMAIN",
        help="a host from which audio_url may be read over https (default: none)",
    )
    parser.add_argument(
        "--audio-folder",
        type=expand_home,
        metavar="DIR",
        help="the folder whose files audio_url may name as file: (default: none)",
    )
    parser.add_argument(
        "--preferences",
        type=expand_home,
        metavar="DIR",
        help="let people compare replies, and keep their verdicts there",
    )
    parser.add_argument(
        "--pairs", type=expand_home, metavar="FILE", help="prepared pairs to compare"
    )


def _add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    default = ServingSettings
    for flag, kind, help_text in (
        ("--max-body-mb", float, "largest body of a request"),
        ("--max-audio-s", float, "most seconds of sound in a request"),
        ("--max-clips", int, "most clips in a request"),
        ("--max-samples", int, "most replies to a request"),
        ("--max-queue", int, "requests that may wait; more are told to come back"),
        ("--request-timeout-s", float, "a request that takes longer is ended"),
        ("--drain-timeout-s", float, "how long running replies may go on at the end"),
        ("--url-timeout-s", float, "how long reading a clip from its URL may take"),
    ):
        name = flag[2:].replace("-", "_")
        parser.add_argument(
            flag,
            type=kind,
            default=getattr(default, name),
            help=f"{help_text} (default %(default)s)",
        )


def settings_of(options: argparse.Namespace) -> ServingSettings:
    """Returns the server's settings that the options give.

    Raises:
        ConfigError: a value is out of range, or the file of keys cannot be used.
    """
    from stepaudio_jax.serving.access import read_api_keys

    keys = tuple(options.api_key)
    if options.api_key_file is not None:
        keys += read_api_keys(options.api_key_file)
    return ServingSettings(
        host=options.host,
        port=options.port,
        api_keys=keys,
        cors_origins=tuple(options.cors_origin),
        audio_domains=tuple(options.audio_domain),
        audio_folder=options.audio_folder,
        max_body_mb=options.max_body_mb,
        max_audio_s=options.max_audio_s,
        max_clips=options.max_clips,
        max_samples=options.max_samples,
        max_queue=options.max_queue,
        request_timeout_s=options.request_timeout_s,
        drain_timeout_s=options.drain_timeout_s,
        url_timeout_s=options.url_timeout_s,
        preferences_folder=options.preferences,
        pairs=options.pairs,
    )


if __name__ == "__main__":
    sys.exit(main())
