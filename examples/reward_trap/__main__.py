"""Runs the verifiable reward trap in miniature: `python -m examples.reward_trap`.

Trains one seed with verifiable rewards alone, and one with preference and rubric in a joint stage,
in minutes on two cores. `make trap` runs three seeds of all arms. An interrupted command resumes;
finished parts are not repeated.
"""

import argparse
import pathlib

from examples import ON_INTERRUPT
from launch.errors import exit_on_error
from stepaudio_jax.storage import Path, atomic_text_writer, check_output_file, user_path

_ARMS = ("rlvr", "joint", "sequential")


def main() -> None:
    """Parses the command line, trains what is missing, and prints the tables and findings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=_ARMS, default=_ARMS[:2])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=user_path, help="the report to write, in Markdown")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds} must be at least 1")
    with exit_on_error(ON_INTERRUPT):
        if options.output is not None:
            check_output_file(options.output, may_replace=_is_report)
        _run(options.arms, options.seeds, options.output)


def _run(arms: list[str], seeds: int, output: pathlib.Path | None) -> None:
    """Trains the arms, prints the tables and findings, and writes the report."""
    import jax

    from examples.reward_trap.metrics import ReplyMetrics
    from examples.reward_trap.report import HEADINGS, describe_judge, findings, page, results_table
    from examples.reward_trap.reward_trap import START, RewardTrap
    from stepaudio_jax.evaluation import as_markdown, as_text

    trap = RewardTrap.from_configs()
    # The runs are short and share most of their programs: compile each program once.
    jax.config.update("jax_compilation_cache_dir", str((trap.folder / "compiled").resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    trap.train_start()
    judge = describe_judge(trap.evaluate_judge())
    print(judge, flush=True)
    runs: dict[str, dict[str, list[ReplyMetrics]]] = {
        decoding: {START: [metrics]} for decoding, metrics in trap.measure_start().items()
    }
    for seed in range(seeds):
        for arm in arms:
            for name, by_decoding in trap.run(arm, seed):
                for decoding, metrics in by_decoding.items():
                    runs[decoding].setdefault(name, []).append(metrics)
    tables = {decoding: results_table(by_model) for decoding, by_model in runs.items()}
    sentences = {decoding: findings(by_model) for decoding, by_model in runs.items()}
    for decoding, table in tables.items():
        print(f"{HEADINGS[decoding]}\n", as_text(table), *sentences[decoding], "", sep="\n")
    print(f"curves and samples: {trap.folder}/*/report.html")
    if output is not None:
        markdown = {decoding: as_markdown(table) for decoding, table in tables.items()}
        with atomic_text_writer(output) as file:
            file.write(page(markdown, sentences, judge))


def _is_report(path: Path) -> bool:
    """Returns whether a file is an earlier report of this program."""
    return path.read_bytes().startswith(b"# The verifiable reward trap")


if __name__ == "__main__":
    main()
