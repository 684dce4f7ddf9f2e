"""What the demonstration showed: a table, and in plain words which of the paper's effects its intervals support."""

from collections.abc import Mapping, Sequence

import numpy as np

from examples.reward_trap.metrics import PairedDifference, ReplyMetrics, paired_difference
from examples.reward_trap.reward_trap import JOINT, RLVR, RUBRIC, START, THEN_PREFERENCE
from stepaudio_jax.evaluation import Table
from stepaudio_jax.judge.training import JudgeReport

Runs = Mapping[str, Sequence[ReplyMetrics]]
"""Model -> what was measured of it, seed by seed; START once."""

_METRIC_NAMES = {
    "is_correct": "accuracy",
    "wins": "wins against the reference",
    "rubric_met": "rubric met",
}
_NAMES = {
    START: "start",
    RLVR: "verifiable rewards alone",
    JOINT: "preference and rubric, joint",
    RUBRIC: "rubric only",
    THEN_PREFERENCE: "then preference only",
}
HEADINGS: Mapping[str, str] = {
    "drawn": "Replies drawn as in training",
    "greedy": "The most probable replies",
}
_MAX_ACCURACY_LOSS = 0.02  # of accuracy, that the paper's effect allows


def results_table(runs: Runs) -> Table:
    """A row for each model: means over seeds and, of several seeds, their range."""
    rows = [
        (
            _NAMES[name],
            *(
                _format_range(
                    [float(np.mean(getattr(one, figure))) for one in measured], share=True
                )
                for figure in _METRIC_NAMES
            ),
            _format_range([float(np.mean(one.num_words)) for one in measured]),
            _format_range([one.kl for one in measured]) if name != START else "",
        )
        for name, measured in runs.items()
    ]
    (some, *_) = runs[START]
    seeds = max(map(len, runs.values()))
    notes = [
        f"Held-out questions: {len(some.is_correct)} plain ones, and {len(some.rubric_met)} with a request that a rubric checks; the "
        "rule scores the replies.",
        f"{seeds} seeds: mean (least to greatest)." if seeds > 1 else "One seed.",
        "KL: nats a reply, to what the last stage began with.",
    ]
    return Table(
        ("model", *_METRIC_NAMES.values(), "words in a reply", "KL"), tuple(rows), tuple(notes)
    )


def findings(runs: Runs) -> list[str]:
    """Each effect that the paper reports and that was tried here: shown or not, with the difference and its 95 % interval."""
    found = []
    start = runs[START][0]

    def against_start(name: str, figure: str) -> PairedDifference:
        return paired_difference(runs[name], [start] * len(runs[name]), figure)

    if RLVR in runs:
        shorter, lost = against_start(RLVR, "num_words"), against_start(RLVR, "wins")
        found.append(
            _finding(
                shorter.high < 0, "verifiable rewards alone shorten replies", shorter, " words"
            )
        )
        found.append(_finding(lost.high < 0, "verifiable rewards alone lose preference", lost))
    if JOINT in runs:
        kept = against_start(JOINT, "is_correct")
        found.append(
            _finding(
                kept.low > -_MAX_ACCURACY_LOSS,
                "the joint stage keeps accuracy within 2 points",
                kept,
            )
        )
        for figure in ("wins", "rubric_met"):
            gained = against_start(JOINT, figure)
            found.append(
                _finding(
                    gained.low > 0, f"the joint stage gains in {_METRIC_NAMES[figure]}", gained
                )
            )
            if RLVR in runs:
                better = paired_difference(runs[JOINT], runs[RLVR], figure)
                found.append(
                    _finding(
                        better.low > 0,
                        f"and is ahead of verifiable rewards alone in {_METRIC_NAMES[figure]}",
                        better,
                    )
                )
    if THEN_PREFERENCE in runs:
        forgotten = paired_difference(runs[THEN_PREFERENCE], runs[RUBRIC], "rubric_met")
        found.append(
            _finding(forgotten.high < 0, "preference after rubric forgets the rubric", forgotten)
        )
        if JOINT in runs:
            ahead = paired_difference(runs[JOINT], runs[THEN_PREFERENCE], "rubric_met")
            found.append(
                _finding(
                    ahead.low > 0, "the joint stage is ahead of the two stages in rubric met", ahead
                )
            )
    return found


def page(tables: Mapping[str, str], found: Mapping[str, Sequence[str]], judge: str) -> str:
    """The report in Markdown.

    Args:
        tables: by the way that replies were measured, in Markdown.
        found: by the same, what is shown.
        judge: how good it is.
    """
    sections = "\n\n".join(
        f"## {HEADINGS[way]}\n\n{table}\n" + "\n".join(f"* {one}" for one in found[way])
        for way, table in tables.items()
    )
    return f"""# The verifiable reward trap, in miniature

Made by `make trap`. The quickstart's small model is first taught to answer in all manners: tersely ("female"), in a sentence,
with a kind word in front, an offer behind, or everything twice. From there it learns from rewards, on spoken questions about
gender, rate, pitch, language, keyword and sum:

* verifiable rewards alone: 0.8 for a reply that is exactly the answer, 0.2 for the form (Step-Audio-R1's weights);
* joint: a judge compares with a reference reply; where the user asks for something ("One word only.", "Say it twice.") it
  judges by a rubric, in the same batches;
* two stages: prompts with a rubric only, then those with a preference only, each for half of the steps.

The judge is the same small model, taught by a synthetic rule (`stepaudio_jax/quickstart/manners.py`): a right answer first,
then what was asked for, else complete and friendly rather than terse. It does not hear: it is told the
fact that is asked for. Before its verdict it reasons. The rule itself
scores the runs below, on voices and phrases that nothing has learnt from. An exact verifier is what makes terse replies pay
here; one that looks for the answer anywhere in a reply would not.

Each model is measured twice: by replies drawn at temperature 1, which is what rewards act on, and by its most probable replies.
The two differ most for the start, which has learnt manners at random.

{judge}

{sections}
"""


def describe_judge(report: JudgeReport) -> str:
    """How good the judge is on held-out pairs."""
    if report.agreement is None or report.position_bias is None:
        return f"The judge has a verdict on none of {report.pairs} held-out pairs."
    criteria = (
        ""
        if report.criteria_agreement is None
        else f", sees {report.criteria_agreement:.1%} of the criteria as they are"
    )
    return (
        f"The judge, on {report.pairs} held-out pairs: prefers the better reply in {report.agreement:.1%}, prefers a place in "
        f"{report.position_bias:.1%}, gives no verdict on {report.abstained:.1%}{criteria}."
    )


def _finding(shown: bool, claim: str, by: PairedDifference, unit: str = "") -> str:
    scale, unit = (1, unit) if unit else (100, " points")
    figures = f"{by.mean * scale:+.1f}{unit}, 95 % interval {by.low * scale:+.1f} to {by.high * scale:+.1f}"
    return f"{'Shown' if shown else 'NOT shown'}: {claim} ({figures})."


def _format_range(values: Sequence[float], *, share: bool = False) -> str:
    """0.5, 0.6 -> "55 % (50 to 60)"."""
    scale, unit = (100, " %") if share else (1, "")
    low, mean, high = (
        f"{scale * value:.1f}" for value in (min(values), float(np.mean(values)), max(values))
    )
    return f"{mean}{unit}" if len(values) == 1 else f"{mean}{unit} ({low} to {high})"
