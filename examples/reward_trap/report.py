"""Reports the reward trap: tables of the models, and the findings that their intervals support."""

import textwrap
from collections.abc import Mapping, Sequence

from examples.reward_trap.arms import ARMS, START
from examples.reward_trap.claims import (
    METRIC_NAMES,
    MODEL_NAMES,
    Runs,
    findings,
    rubric_default,
)
from examples.reward_trap.metrics import ReplyMetrics, mean_of_seeds
from stepaudio_jax.evaluation import Table, as_markdown, as_text
from stepaudio_jax.judge.training import JudgeReport

TITLE = "# The verifiable reward trap, in miniature"
HEADINGS: Mapping[str, str] = {
    "drawn": "Replies sampled as in training",
    "greedy": "Replies of greedy decoding",
}
"""Decoding -> the heading of its section."""
_ARM_TEXTS: Mapping[str, str] = {
    "rlvr": "verifiable rewards alone: 0.8 for a reply that is exactly the answer, 0.2 for the "
    "format (the weights of Step-Audio-R1).",
    "joint": "joint, criteria: a judge compares the reply with a reference reply; where the user "
    'has a request ("One word only.", "Say it twice."), it judges by a rubric, of each criterion '
    "whether it is met; both kinds are in every batch.",
    "ordinal": 'joint, ordinal: the same with `judge.rubric="ordinal"`, one comparison in the '
    "light of the rubric (the paper's form, eq. 2).",
    "both": 'joint, both: the same with `judge.rubric="both"`, the mean of the two.',
    "sequential": "two stages: prompts with a rubric only, then prompts with a preference only, "
    "each for half of the steps.",
    "dpo": "DPO: as many replies to as many prompts, all of the start model, scored once by the "
    "judge of the joint stage; the best and the worst reply to a prompt are a pair.",
    "online_dpo": "online DPO: the same pairs, of the policy's own replies at each step "
    '(`advantage_estimator="dpo"`).',
}
"""Arm -> what it is, in the order of the report."""


def results_table(start: ReplyMetrics, runs: Runs) -> Table:
    """Returns a row of metrics for each model: the mean over its seeds, and its interval."""
    rows = [_row(START, [start])]
    rows += [
        _row(model, [seeds[seed] for seed in sorted(seeds)])
        for model, seeds in sorted(runs.items(), key=lambda item: list(MODEL_NAMES).index(item[0]))
    ]
    notes = (
        f"Held-out questions: {len(start.is_correct)} without a request, and "
        f"{len(start.rubric_met)} with one, which a rubric checks; the rule scores the replies.",
        "Mean (95 % interval): Student's, over the seeds; with one seed, over the questions.",
        "KL: nats per reply with its reasoning, to the start model, of replies sampled at "
        "temperature 1.",
    )
    header = ("model", "seeds", *METRIC_NAMES.values(), "words in a reply", "KL")
    return Table(header, tuple(rows), notes)


def text_report(start: Mapping[str, ReplyMetrics], runs: Mapping[str, Runs]) -> str:
    """Returns the report for a terminal.

    Args:
        start: decoding -> metrics of the start model.
        runs: decoding -> the trained models.
    """
    sections = []
    for decoding, heading in HEADINGS.items():
        table = as_text(results_table(start[decoding], runs[decoding]))
        sentences = findings(start[decoding], runs[decoding])
        sections.append("\n".join([heading, "", table, *map(str, sentences), ""]))
    if defaults := _rubric_section(runs):
        sections.append("\n".join(["The default of judge.rubric", "", *defaults, ""]))
    return "\n".join(sections)


def page(start: Mapping[str, ReplyMetrics], runs: Mapping[str, Runs], judges: Sequence[str]) -> str:
    """Returns the report in Markdown.

    Args:
        start: decoding -> metrics of the start model.
        runs: decoding -> the trained models.
        judges: the quality of each judge (see `describe_judge`).
    """
    models = set().union(*runs.values())
    arms = [arm for arm in _ARM_TEXTS if models.intersection(ARMS[arm])]
    sections = [_introduction(arms), *judges]
    for decoding, heading in HEADINGS.items():
        table = as_markdown(results_table(start[decoding], runs[decoding]))
        sentences = findings(start[decoding], runs[decoding])
        listed = "\n".join(f"* {sentence}" for sentence in sentences)
        sections += [f"## {heading}", f"{table}\n{listed}"]
    if defaults := _rubric_section(runs):
        listed = "\n".join(f"* {sentence}" for sentence in defaults)
        sections += ["## The default of `judge.rubric`", listed]
    return "\n\n".join(sections) + "\n"


def _introduction(arms: Sequence[str]) -> str:
    listed = "\n".join(
        textwrap.fill(f"* {_ARM_TEXTS[arm]}", 100, subsequent_indent="  ", break_on_hyphens=False)
        for arm in arms
    )
    return f"""{TITLE}

Made by `make trap`. The quickstart's small model is first trained to answer in random styles:
tersely ("female"), in a sentence, with a greeting before it, an offer after it, or everything
twice. This is the start of every model below, each trained for 40 steps with the same optimizer on
spoken questions about gender, rate, pitch, language, keyword and sum:

{listed}

The judge is the same small model, trained on a synthetic rule (`examples/reward_trap/style.py`): a
correct answer counts most, then the request, else a complete and friendly reply is better than a
terse one. It does not receive audio: it is told the fact that is asked for. It reasons before its
verdict. For the forms `ordinal` and `both` it learns their questions in 200 further steps. The rule
itself scores the results below, on voices and phrases that no training used. Terse replies win here
because the verifier is exact; one that searches the reply for the answer would not favour them.

Each model is measured with two decodings: sampled at temperature 1, as the rewards see it, and
greedy. They differ most for the start model, which was trained on random styles. An effect is
called shown where the 95 % interval of its difference supports it. The intervals are not corrected
for their number: of forty differences that are none, about two would be called shown. All seeds
have the same start model and the same judge, so the intervals say nothing about others."""


def _row(model: str, seeds: Sequence[ReplyMetrics]) -> tuple[str, ...]:
    shares = [_format(seeds, metric, share=True) for metric in METRIC_NAMES]
    kl = _format(seeds, "kl") if all(len(metrics.kl) > 1 for metrics in seeds) else ""
    count = "" if model == START else str(len(seeds))
    return (MODEL_NAMES[model], count, *shares, _format(seeds, "num_words"), kl)


def _format(seeds: Sequence[ReplyMetrics], metric: str, *, share: bool = False) -> str:
    """Formats a mean and its interval: "55.0 % (50.0 to 60.0)"."""
    scale, unit = (100, " %") if share else (1, "")
    estimate = mean_of_seeds(seeds, metric)
    mean, low, high = (
        f"{scale * value:.1f}" for value in (estimate.mean, estimate.low, estimate.high)
    )
    return f"{mean}{unit} ({low} to {high})"


def _rubric_section(runs: Mapping[str, Runs]) -> list[str]:
    """Returns what decides the default of `judge.rubric`; empty if no other form was trained."""
    drawn = runs["drawn"]
    return rubric_default(drawn) if drawn.keys() & {"ordinal", "both"} else []


def describe_judge(report: JudgeReport, name: str = "The judge") -> str:
    """Returns a sentence on the quality of a judge on held-out pairs."""
    if report.agreement is None or report.position_bias is None:
        return f"{name} has a verdict on none of {report.pairs} held-out pairs."
    criteria = (
        ""
        if report.criteria_agreement is None
        else f", judges {report.criteria_agreement:.1%} of the criteria correctly"
    )
    return (
        f"{name} on {report.pairs} held-out pairs: prefers the better reply in "
        f"{report.agreement:.1%}, prefers a position in {report.position_bias:.1%}, abstains in "
        f"{report.abstained:.1%}{criteria}."
    )
