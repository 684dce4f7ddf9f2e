"""Reports the reward trap: a table, and which of the paper's effects its intervals support."""

from collections.abc import Mapping, Sequence

import numpy as np

from examples.reward_trap.metrics import PairedDifference, ReplyMetrics, paired_difference
from examples.reward_trap.reward_trap import JOINT, RLVR, RUBRIC, START, THEN_PREFERENCE
from stepaudio_jax.evaluation import Table
from stepaudio_jax.judge.training import JudgeReport

Runs = Mapping[str, Sequence[ReplyMetrics]]
"""Model -> its metrics of each seed; the model START has one seed."""

TITLE = "# The verifiable reward trap, in miniature"
HEADINGS: Mapping[str, str] = {
    "drawn": "Replies sampled as in training",
    "greedy": "Replies of greedy decoding",
}
"""Decoding -> the heading of its section."""
_METRIC_NAMES = {
    "is_correct": "accuracy",
    "wins": "wins against the reference",
    "rubric_met": "rubric met",
}
_MODEL_NAMES = {
    START: "start",
    RLVR: "verifiable rewards alone",
    JOINT: "preference and rubric, joint",
    RUBRIC: "rubric only",
    THEN_PREFERENCE: "then preference only",
}
_MAX_ACCURACY_LOSS = 0.02  # that still counts as keeping the accuracy


def results_table(runs: Runs) -> Table:
    """Returns a row of metrics for each model: the mean over its seeds, and their range."""
    rows = []
    for name, seeds in runs.items():
        shares = [
            _format_range([float(np.mean(getattr(seed, metric))) for seed in seeds], share=True)
            for metric in _METRIC_NAMES
        ]
        words = _format_range([float(np.mean(seed.num_words)) for seed in seeds])
        kl = _format_range([seed.kl for seed in seeds]) if name != START else ""
        rows.append((_MODEL_NAMES[name], *shares, words, kl))
    (start,) = runs[START]
    num_seeds = max(map(len, runs.values()))
    notes = (
        f"Held-out questions: {len(start.is_correct)} without a request, and "
        f"{len(start.rubric_met)} with one, which a rubric checks; the rule scores the replies.",
        f"{num_seeds} seeds: mean (minimum to maximum)." if num_seeds > 1 else "One seed.",
        "KL: nats per reply, to the start of the last stage.",
    )
    header = ("model", *_METRIC_NAMES.values(), "words in a reply", "KL")
    return Table(header, tuple(rows), notes)


def findings(runs: Runs) -> list[str]:
    """Returns a sentence for each effect of the paper that the runs can show.

    It says whether the 95 % interval of the difference supports the effect.
    """
    sentences = []
    start = runs[START][0]

    def against_start(name: str, metric: str) -> PairedDifference:
        return paired_difference(runs[name], [start] * len(runs[name]), metric)

    def add(is_shown: bool, claim: str, difference: PairedDifference, unit: str = "") -> None:
        sentences.append(_finding(is_shown, claim, difference, unit))

    if RLVR in runs:
        shorter = against_start(RLVR, "num_words")
        add(shorter.high < 0, "verifiable rewards alone shorten replies", shorter, " words")
        lost = against_start(RLVR, "wins")
        add(lost.high < 0, "verifiable rewards alone lose preference", lost)
    if JOINT in runs:
        kept = against_start(JOINT, "is_correct")
        is_kept = kept.low > -_MAX_ACCURACY_LOSS
        add(is_kept, "the joint stage keeps accuracy within 2 points", kept)
        for metric in ("wins", "rubric_met"):
            metric_name = _METRIC_NAMES[metric]
            gained = against_start(JOINT, metric)
            add(gained.low > 0, f"the joint stage gains in {metric_name}", gained)
            if RLVR in runs:
                ahead = paired_difference(runs[JOINT], runs[RLVR], metric)
                claim = f"and is ahead of verifiable rewards alone in {metric_name}"
                add(ahead.low > 0, claim, ahead)
    if THEN_PREFERENCE in runs:
        forgotten = paired_difference(runs[THEN_PREFERENCE], runs[RUBRIC], "rubric_met")
        add(forgotten.high < 0, "preference after rubric forgets the rubric", forgotten)
        if JOINT in runs:
            ahead = paired_difference(runs[JOINT], runs[THEN_PREFERENCE], "rubric_met")
            claim = "the joint stage is ahead of the two stages in rubric met"
            add(ahead.low > 0, claim, ahead)
    return sentences


def page(tables: Mapping[str, str], sentences: Mapping[str, Sequence[str]], judge: str) -> str:
    """Returns the report in Markdown.

    Args:
        tables: decoding -> its table in Markdown.
        sentences: decoding -> its findings.
        judge: the quality of the judge (see `describe_judge`).
    """
    sections = "\n\n".join(
        f"## {HEADINGS[decoding]}\n\n{table}\n"
        + "\n".join(f"* {sentence}" for sentence in sentences[decoding])
        for decoding, table in tables.items()
    )
    return f"""{TITLE}

Made by `make trap`. The quickstart's small model is first trained to answer in random styles:
tersely ("female"), in a sentence, with a greeting before it, an offer after it, or everything
twice. This is the start of three ways of RL, on spoken questions about gender, rate, pitch,
language, keyword and sum:

* verifiable rewards alone: 0.8 for a reply that is exactly the answer, 0.2 for the format (the
  weights of Step-Audio-R1);
* joint: a judge compares the reply with a reference reply; where the user has a request ("One word
  only.", "Say it twice."), it judges by a rubric; both kinds are in every batch;
* two stages: prompts with a rubric only, then prompts with a preference only, each for half of the
  steps.

The judge is the same small model, trained on a synthetic rule (`examples/reward_trap/style.py`): a
correct answer counts most, then the request, else a complete and friendly reply is better than a
terse one. It does not receive audio: it is told the fact that is asked for. It reasons before its
verdict. The rule itself scores the results below, on voices and phrases that no training used.
Terse replies win here because the verifier is exact; one that searches the reply for the answer
would not favour them.

Each model is measured with two decodings: sampled at temperature 1, as the rewards see it, and
greedy. They differ most for the start model, which was trained on random styles.

{judge}

{sections}
"""


def describe_judge(report: JudgeReport) -> str:
    """Returns a sentence on the quality of a judge on held-out pairs."""
    if report.agreement is None or report.position_bias is None:
        return f"The judge has a verdict on none of {report.pairs} held-out pairs."
    criteria = (
        ""
        if report.criteria_agreement is None
        else f", judges {report.criteria_agreement:.1%} of the criteria correctly"
    )
    return (
        f"The judge on {report.pairs} held-out pairs: prefers the better reply in "
        f"{report.agreement:.1%}, prefers a position in {report.position_bias:.1%}, abstains in "
        f"{report.abstained:.1%}{criteria}."
    )


def _finding(is_shown: bool, claim: str, difference: PairedDifference, unit: str) -> str:
    """Returns a finding with its difference, in points of a share or in a unit."""
    scale, unit = (1, unit) if unit else (100, " points")
    mean, low, high = (
        f"{scale * value:+.1f}" for value in (difference.mean, difference.low, difference.high)
    )
    verdict = "Shown" if is_shown else "NOT shown"
    return f"{verdict}: {claim} ({mean}{unit}, 95 % interval {low} to {high})."


def _format_range(values: Sequence[float], *, share: bool = False) -> str:
    """Formats the mean of values and their range: 0.5, 0.6 -> "55.0 % (50.0 to 60.0)"."""
    scale, unit = (100, " %") if share else (1, "")
    low, mean, high = (
        f"{scale * value:.1f}" for value in (min(values), float(np.mean(values)), max(values))
    )
    return f"{mean}{unit}" if len(values) == 1 else f"{mean}{unit} ({low} to {high})"
