"""Which curves a run has."""

from collections.abc import Mapping, Sequence

from stepaudio_jax.evaluation.chart import Chart, Scale, Series
from stepaudio_jax.evaluation.logged_run import LoggedRun

_NEXT_TOKEN, _TOTAL = "loss/next_token", "loss"
_RECORD_COUNTERS = (
    "records",
    "skipped_bad_audio",
    "skipped_too_long",
    "skipped_bad_record",
)  # running counts, which are no curves
# Of a stage that learns from rewards, each in total and, as "NAME/SOURCE", by source.
_RL_CHARTS: tuple[tuple[str, str, str, Scale], ...] = (
    ("reward", "Reward", "mean", "around"),
    ("win_rate", "Win rate", "against the reference reply", "from zero"),
    ("reward_rubric_score", "Rubric score", "share of its weights", "around"),
    ("reward_verifier", "Verified", "share of replies", "from zero"),
    ("reply_tokens", "Reply", "tokens", "from zero"),
    ("reasoning_tokens", "Reasoning", "tokens", "from zero"),
    ("well_formed", "Well-formed", "share of replies", "from zero"),
    ("truncated", "Truncated", "share of replies", "from zero"),
    ("abstained", "Abstentions of the judge", "share of replies", "from zero"),
    ("distinct_2", "Distinct pairs of tokens", "share", "from zero"),
)


def charts(run: LoggedRun) -> list[Chart]:
    """The curves of a run, loss first: every metric that it logged is in one of them.

    Training and held-out metrics share a chart where they measure the same. A metric that is not
    known here has its own.
    """
    names = [name for name in run.metric_names if not name.startswith(_RECORD_COUNTERS)]
    auxiliary = [name for name in names if name.startswith("loss/") and name != _NEXT_TOKEN]
    rates = [name for name in names if name.startswith("learning_rate")]
    drawn: list[Chart] = []
    if _NEXT_TOKEN in names:
        drawn += _chart(
            run,
            "Loss",
            "nats a token",
            "log",
            {_NEXT_TOKEN: "training", "evaluation/loss": "held out"},
        )
        if auxiliary:
            labels = {_TOTAL: "all terms, weighted"} | {
                name: name.removeprefix("loss/") for name in auxiliary
            }
            drawn += _chart(run, "Auxiliary losses", "mean", "log", labels)
    else:
        drawn += _chart(
            run, "Loss", "mean", "log", {_TOTAL: "training", "evaluation/loss": "held out"}
        )
    labels = {"token_accuracy": "training", "evaluation/token_accuracy": "held out"}
    drawn += _chart(run, "Token accuracy", "share of tokens", "from zero", labels)
    drawn += _chart(run, "Learning rate", "", "from zero", {name: name for name in rates})
    drawn += _chart(run, "Gradient norm", "before clipping", "log", {"gradient_norm": "training"})
    drawn += _chart(run, "Tokens", "a second", "from zero", {"tokens_per_second": "training"})
    drawn += _chart(
        run,
        "Audio",
        "seconds heard a second",
        "from zero",
        {"audio_seconds_per_second": "training"},
    )
    drawn += _chart(run, "Steps", "a second", "from zero", {"steps_per_second": "training"})
    drawn += _chart(
        run,
        "Waiting for data",
        "share of the time",
        "from zero",
        {"data_wait_fraction": "training"},
    )
    for metric, title, unit, scale in _RL_CHARTS:
        by_source = {
            name: name.removeprefix(f"{metric}/") for name in names if name.startswith(f"{metric}/")
        }
        drawn += _chart(run, title, unit, scale, {metric: "all"} | by_source)
    drawn += _chart(
        run, "KL", "nats a reply, to what the stage began with", "from zero", {"reply_kl": "policy"}
    )
    parts = {name: name.removeprefix("seconds/") for name in names if name.startswith("seconds/")}
    drawn += _chart(run, "Time", "seconds a step", "from zero", parts)
    known = {_TOTAL} if _NEXT_TOKEN in names else set()
    known |= {series.metric for chart in drawn for series in chart.series}
    for name in names:
        if name not in known:
            drawn += _chart(run, name, "", "around", {name: name})
    return drawn


def _chart(
    run: LoggedRun, title: str, unit: str, scale: Scale, labels: Mapping[str, str]
) -> Sequence[Chart]:
    """The chart of these metrics (metric -> label), or none where the run logged none of them."""
    series = tuple(
        Series(metric, label, tuple(map(tuple, points.values())))
        for metric, label in labels.items()
        if (points := run.points(metric))
    )
    return [Chart(title, unit, scale, series, run.spans)] if series else []
