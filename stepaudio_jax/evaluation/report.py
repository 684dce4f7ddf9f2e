"""The report of a run: one HTML page that needs nothing else, neither network nor script."""

import json
import os
import pathlib
import string
from collections.abc import Sequence
from importlib import resources

from stepaudio_jax.config import AudioChannel, DataConfig
from stepaudio_jax.evaluation.chart import draw
from stepaudio_jax.evaluation.curves import charts
from stepaudio_jax.evaluation.examples import example_card, select_examples
from stepaudio_jax.evaluation.grading import Answer
from stepaudio_jax.evaluation.logged_run import LoggedRun, read_run
from stepaudio_jax.evaluation.markup import Html, element, escaped, joined
from stepaudio_jax.evaluation.replies import SAMPLES, replies_table
from stepaudio_jax.evaluation.results_section import results_table
from stepaudio_jax.evaluation.run_summary import run_facts, stage_table
from stepaudio_jax.evaluation.table import Results
from stepaudio_jax.storage import atomic_text_writer, check_output_file
from stepaudio_jax.training.run_folder import CONFIG, METRICS

PathLike = str | os.PathLike[str]

_PAGE_PREFIX = b"<!doctype html>"  # of a page


def write_report(
    path: PathLike,
    run_dir: PathLike,
    title: str,
    results: Results | None = None,
    answers: Sequence[Answer] = (),
    *,
    channel: AudioChannel = DataConfig.channel,
) -> pathlib.Path:
    """Writes the report of a run, finished or not: results, curves, replies of a policy, examples, configuration.

    Args:
        path: the HTML file. It appears when it is complete.
        run_dir: the run's folder, with config.json and metrics.jsonl.
        title: of the page.
        results: of an evaluation; None leaves the table out.
        answers: of that evaluation. `select_examples` takes a few of each task, which are shown
            with their clips; without answers there are no examples.
        channel: what the model heard of a clip with several channels, and the examples play.

    Returns:
        `path`.

    Raises:
        ReportError: the folder does not hold a run.
        OutputError: the page would replace a file that is no page, or cannot be written.
        AudioError: a clip of an example cannot be read.
    """
    check_output_file(path, _files_of(run_dir), may_replace=_is_page)
    run = read_run(run_dir)
    sections = {
        "Results": results_table(results) if results is not None else None,
        "Curves": _curves(run),
        "Replies": replies_table(run.folder),
        "Examples": _examples(select_examples(answers), channel) if answers else None,
        "Configuration": _configuration(run),
    }
    present = {name: content for name, content in sections.items() if content is not None}
    template = (
        resources.files("stepaudio_jax.evaluation")
        .joinpath("report.html")
        .read_text(encoding="utf-8")
    )
    page = string.Template(template).substitute(
        title=escaped(title),
        subtitle=escaped(str(run.folder)),
        navigation=joined(*(element("a", name, href=f"#{name.lower()}") for name in present)),
        sections=joined(*(_section(name, content) for name, content in present.items())),
    )
    final = pathlib.Path(path)
    with atomic_text_writer(final) as file:
        file.write(page)
    return final


def _files_of(run_dir: PathLike) -> list[pathlib.Path]:
    return [pathlib.Path(run_dir) / name for name in (CONFIG, METRICS, SAMPLES)]


def _is_page(path: pathlib.Path) -> bool:
    """Returns whether a file is a page that may be replaced by a newer one."""
    with path.open("rb") as file:
        return file.read(len(_PAGE_PREFIX)).lower() == _PAGE_PREFIX


def _section(name: str, content: Html) -> Html:
    heading = f"{name.lower()}-heading"
    return element(
        "section",
        element("h2", name, id=heading),
        content,
        id=name.lower(),
        aria_labelledby=heading,
    )


def _curves(run: LoggedRun) -> Html:
    drawn = [draw(chart) for chart in charts(run)]
    if not drawn:
        return element("p", "Nothing has been logged yet.", class_="muted")
    return element("div", *drawn, class_="charts")


def _examples(examples: Sequence[Answer], channel: AudioChannel) -> Html:
    right = sum(answer.correct for answer in examples)
    note = f"{len(examples)} questions, {right} of these answered rightly; the table has the accuracy over all questions."
    cards = (
        example_card(answer, number, channel=channel) for number, answer in enumerate(examples, 1)
    )
    return joined(element("p", note, class_="muted"), element("div", *cards, class_="examples"))


def _configuration(run: LoggedRun) -> Html:
    whole = json.dumps(run.config, indent=2, ensure_ascii=False)
    return joined(
        run_facts(run),
        stage_table(run),
        element("details", element("summary", "The whole configuration"), element("pre", whole)),
    )
