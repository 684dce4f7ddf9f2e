"""Runs the verifiable reward trap in miniature: `python -m examples.reward_trap`.

Trains one seed with verifiable rewards alone, and one with preference and rubric in a joint stage,
in minutes on two cores. `make trap` runs eight seeds of all arms, in hours. An interrupted command
resumes; finished parts are not repeated. `--report` trains nothing and reports on what is finished,
also while another process trains.
"""

import argparse
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from examples import ON_INTERRUPT
from launch.errors import exit_on_error
from stepaudio_jax.errors import OutputError
from stepaudio_jax.storage import (
    Path,
    atomic_text_writer,
    check_output_file,
    user_path,
)

if TYPE_CHECKING:
    from examples.reward_trap.metrics import ReplyMetrics
    from examples.reward_trap.reward_trap import RewardTrap
    from stepaudio_jax.config import RubricUse

_ARMS = ("rlvr", "joint", "ordinal", "sequential", "dpo", "online_dpo", "both")
_RUBRIC_FORMS: "tuple[RubricUse, ...]" = ("ordinal", "both")  # arms of these names


def main() -> None:
    """Parses the command line, trains what is missing, and prints the tables and findings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=_ARMS, default=_ARMS[:2])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--report", action="store_true", help="train nothing; report on what is finished"
    )
    parser.add_argument("--output", type=user_path, help="the report to write, in Markdown")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds} must be at least 1")
    with exit_on_error(ON_INTERRUPT):
        if options.output is not None:
            check_output_file(options.output, may_replace=_is_report)
        _run(list(dict.fromkeys(options.arms)), options.seeds, options.output, options.report)


def _run(arms: list[str], seeds: int, output: pathlib.Path | None, only_report: bool) -> None:
    """Trains the arms unless told not to, prints the report, and writes it."""
    from examples.reward_trap.metrics import TEMPERATURES
    from examples.reward_trap.report import describe_judge, page, text_report
    from examples.reward_trap.reward_trap import RewardTrap

    trap = RewardTrap.from_configs()
    if not only_report:
        _keep_programs(trap.folder / "compiled")
        trap.train_start()
    start = trap.finished_start() if only_report else trap.measure_start()
    if start is None:
        raise OutputError(f"{trap.folder}: the start model is not measured yet; leave out --report")
    forms: list[RubricUse] = ["criteria", *(form for form in _RUBRIC_FORMS if form in arms)]
    if not only_report and len(forms) > 1:
        trap.train_rubric_judge()
    judges = []
    for form in forms:
        quality = trap.judge_quality(form) if only_report else trap.measure_judge(form)
        if quality is not None:
            name = "The judge" if form == "criteria" else f"The judge with the form `{form}`"
            judges.append(describe_judge(quality, name))
            print(judges[-1], flush=True)
    runs: dict[str, dict[str, dict[int, ReplyMetrics]]] = {name: {} for name in TEMPERATURES}
    models = _finished if only_report else _trained
    for name, seed, by_decoding in models(trap, arms, seeds):
        for decoding, metrics in by_decoding.items():
            runs[decoding].setdefault(name, {})[seed] = metrics
    print(text_report(start, runs))
    print(f"curves and samples: {trap.folder}/*/report.html")
    if output is not None:
        with atomic_text_writer(output) as file:
            file.write(page(start, runs, judges))


def _keep_programs(folder: pathlib.Path) -> None:
    """Keeps compiled programs: the runs are short and share most of them."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder.resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _trained(
    trap: "RewardTrap", arms: list[str], seeds: int
) -> "Iterator[tuple[str, int, dict[str, ReplyMetrics]]]":
    """Trains what is missing, seed by seed, and yields (model, seed, decoding -> metrics)."""
    import jax

    for seed in range(seeds):
        for arm in arms:
            for name, by_decoding in trap.run(arm, seed):
                yield name, seed, by_decoding
            jax.clear_caches()  # else the programs of all runs stay in memory


def _finished(
    trap: "RewardTrap", arms: list[str], seeds: int
) -> "Iterator[tuple[str, int, dict[str, ReplyMetrics]]]":
    """Yields (model, seed, decoding -> metrics) of what is finished."""
    from examples.reward_trap.arms import ARMS

    for seed in range(seeds):
        for arm in arms:
            for name in ARMS[arm]:
                if (by_decoding := trap.finished(name, seed)) is not None:
                    yield name, seed, by_decoding


def _is_report(path: Path) -> bool:
    """Returns whether a file is an earlier report of this program."""
    return path.read_bytes().startswith(b"# The verifiable reward trap")


if __name__ == "__main__":
    main()
