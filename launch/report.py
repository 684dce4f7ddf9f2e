"""Writes the report of a run as one HTML page.

python -m launch.report RUN_DIR [--output FILE] [--title TITLE]
"""

import argparse

from launch.errors import exit_on_error
from stepaudio_jax.storage import user_path


def main() -> None:
    """Parses arguments and writes the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=user_path, help="the folder of a run, finished or not")
    parser.add_argument("--output", type=user_path, help="default: report.html in the run's folder")
    parser.add_argument("--title", help="default: the folder's name")
    arguments = parser.parse_args()
    with exit_on_error("nothing was written; start the same command again"):
        from stepaudio_jax.reports import write_report

        title = arguments.title or arguments.run_dir.resolve().name
        print(
            write_report(
                arguments.output or arguments.run_dir / "report.html", arguments.run_dir, title
            )
        )


if __name__ == "__main__":
    main()
