"""The verifiable reward trap in miniature, and the way out: `python -m examples.reward_trap` (minutes on two cores).

One seed of verifiable rewards alone, and of preference and rubric in one joint stage. What is there
already is not made again: an interrupted command goes on. `make trap` is three seeds of all arms.
"""

import argparse
import pathlib

from launch.errors import exit_on_error
from stepaudio_jax.storage import atomic_text_writer, check_output_file, user_path

_ARMS = ("rlvr", "joint", "sequential")


def main() -> None:
    """Parses arguments, runs what is missing, prints the table and what it shows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=_ARMS, default=_ARMS[:2])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--output", type=user_path, help="a page of Markdown with the table and what it shows"
    )
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds} must be at least 1")
    with exit_on_error("what is made so far is kept; the same command goes on from there"):
        if options.output is not None:
            check_output_file(options.output, may_replace=_is_page)
        import jax

        from examples.reward_trap.metrics import ReplyMetrics
        from examples.reward_trap.report import (
            HEADINGS,
            describe_judge,
            findings,
            page,
            results_table,
        )
        from examples.reward_trap.reward_trap import START, RewardTrap
        from stepaudio_jax.evaluation import as_markdown, as_text

        trap = RewardTrap.from_configs()
        # The runs are short, and most of their programs the same: each is compiled once.
        jax.config.update("jax_compilation_cache_dir", str((trap.folder / "compiled").resolve()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        judge = describe_judge(trap.prepare())
        print(judge, flush=True)
        runs: dict[str, dict[str, list[ReplyMetrics]]] = {
            way: {START: [one]} for way, one in trap.start().items()
        }
        for seed in range(options.seeds):
            for arm in options.arms:
                for name, measured in trap.run(arm, seed):
                    for way, one in measured.items():
                        runs[way].setdefault(name, []).append(one)
        tables = {way: results_table(found) for way, found in runs.items()}
        said = {way: findings(found) for way, found in runs.items()}
        for way, table in tables.items():
            print(f"{HEADINGS[way]}\n", as_text(table), *said[way], "", sep="\n")
        print(f"curves, and replies to read: {trap.folder}/*/report.html")
        if options.output is not None:
            pages = {way: as_markdown(table) for way, table in tables.items()}
            with atomic_text_writer(options.output) as file:
                file.write(page(pages, said, judge))


def _is_page(path: pathlib.Path) -> bool:
    """Returns whether a file is an earlier page of this program."""
    return path.read_bytes().startswith(b"# The verifiable reward trap")


if __name__ == "__main__":
    main()
