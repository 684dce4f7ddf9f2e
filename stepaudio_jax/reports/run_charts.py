"""Which charts a run has: its metrics by group, with titles in words."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from stepaudio_jax.reports.charts import Chart, Scale, Series
from stepaudio_jax.reports.logged_run import LoggedRun

Group = Literal["Learning", "Speed", "Data", "Health"]
GROUPS: tuple[Group, ...] = get_args(Group)

# Running totals of the records read and skipped: the stage table shows them.
_RUNNING_TOTALS = ("records", "skipped_bad_audio", "skipped_too_long", "skipped_bad_record")
HELD_OUT_METRICS = ("evaluation/loss", "evaluation/token_accuracy")  # all others are of benchmarks
_FLAT_TOLERANCE = 1e-6  # relative difference of values that count as equal


@dataclasses.dataclass(frozen=True)
class ChartSpec:
    """One chart that a run may have.

    Attributes:
        group: the heading under which it stands.
        title: in words.
        unit: of the values; may be empty.
        scale: of the vertical axis.
        curves: metric -> label. "loss/*" draws every metric that begins with "loss/" and that no
            chart names in full; its label is the rest of its name.
    """

    group: Group
    title: str
    unit: str
    scale: Scale
    curves: Mapping[str, str]


def _of_rewards(
    group: Group, metric: str, title: str, unit: str, scale: Scale = "from zero"
) -> ChartSpec:
    """Returns the chart of an RL metric, in total and for each source of records."""
    return ChartSpec(group, title, unit, scale, {metric: "all sources", f"{metric}/*": ""})


_SHARE_OF_REPLIES = "share of replies"

CHARTS: tuple[ChartSpec, ...] = (
    # Learning
    ChartSpec(
        "Learning",
        "Loss",
        "nats a token",
        "log",
        {"loss/next_token": "training", "evaluation/loss": "held out"},
    ),
    ChartSpec("Learning", "Total loss", "mean", "log", {"loss": "all terms, weighted"}),
    ChartSpec("Learning", "Auxiliary losses", "mean", "log", {"loss/*": ""}),
    ChartSpec(
        "Learning",
        "Token accuracy",
        "share of tokens",
        "from zero",
        {"token_accuracy": "training", "evaluation/token_accuracy": "held out"},
    ),
    ChartSpec("Learning", "Benchmarks", "headline figure", "from zero", {"evaluation/*": ""}),
    _of_rewards("Learning", "reward", "Reward", "mean", "around"),
    _of_rewards("Learning", "win_rate", "Win rate", "against the reference reply"),
    _of_rewards("Learning", "reward_preference", "Preference", "mean reward", "around"),
    _of_rewards(
        "Learning",
        "reward_preference_beside_rubric",
        "Preference where a rubric decides",
        "mean reward",
        "around",
    ),
    _of_rewards(
        "Learning", "reward_rubric_score", "Rubric score", "share of its weights", "around"
    ),
    _of_rewards("Learning", "reward_rubric", "Rubric reward", "mean", "around"),
    _of_rewards("Learning", "reward_verifier", "Verified", _SHARE_OF_REPLIES),
    _of_rewards("Learning", "reward_format", "Format reward", _SHARE_OF_REPLIES),
    _of_rewards("Learning", "reward_overlong", "Penalty of overlong replies", "mean", "around"),
    _of_rewards("Learning", "reward_std", "Spread of rewards", "standard deviation"),
    ChartSpec(
        "Learning",
        "Spread of rewards by kind",
        "standard deviation",
        "from zero",
        {"reward_std_rubric": "rubric", "reward_std_pairwise": "pairwise"},
    ),
    _of_rewards("Learning", "reply_kl", "KL to the reference policy", "nats a reply"),
    ChartSpec("Learning", "KL estimate", "nats a token", "from zero", {"kl": "k3 estimate"}),
    ChartSpec("Learning", "KL coefficient", "", "from zero", {"kl_coef": "coefficient"}),
    ChartSpec("Learning", "Policy loss", "mean", "around", {"policy_loss": "policy"}),
    ChartSpec("Learning", "Value loss", "mean", "log", {"value_loss": "value head"}),
    ChartSpec(
        "Learning", "Explained variance", "of returns", "around", {"explained_variance": "values"}
    ),
    ChartSpec("Learning", "Entropy", "nats a token", "from zero", {"entropy": "policy"}),
    _of_rewards("Learning", "reply_tokens", "Reply length", "tokens"),
    _of_rewards("Learning", "reasoning_tokens", "Reasoning length", "tokens"),
    _of_rewards("Learning", "completion_tokens", "Completion length", "tokens"),
    _of_rewards("Learning", "distinct_2", "Distinct pairs of tokens", "share"),
    ChartSpec(
        "Learning",
        "Learning rate",
        "",
        "from zero",
        {"learning_rate": "all parameters", "learning_rate/*": ""},
    ),
    # Speed
    ChartSpec(
        "Speed",
        "Tokens",
        "a second",
        "from zero",
        {"tokens_per_second": "all devices", "tokens_per_second_per_device": "each device"},
    ),
    ChartSpec(
        "Speed",
        "Audio",
        "seconds of audio a second",
        "from zero",
        {
            "audio_seconds_per_second": "all devices",
            "audio_seconds_per_second_per_device": "each device",
        },
    ),
    ChartSpec("Speed", "Steps", "a second", "from zero", {"steps_per_second": "training"}),
    ChartSpec(
        "Speed",
        "Model FLOPs utilization",
        "share of the peak",
        "from zero",
        {"model_flops_utilization": "training"},
    ),
    ChartSpec("Speed", "Goodput", "share of the time", "from zero", {"goodput": "training steps"}),
    ChartSpec("Speed", "Time by phase", "seconds a step", "from zero", {"seconds/*": ""}),
    ChartSpec("Speed", "Compilation", "seconds", "from zero", {"compile_seconds": "so far"}),
    # Data
    ChartSpec(
        "Data", "Waiting for data", "share of the time", "from zero", {"data_wait_fraction": "wait"}
    ),
    ChartSpec(
        "Data", "Time waited for data", "seconds", "from zero", {"data_wait_seconds": "so far"}
    ),
    ChartSpec("Data", "Records skipped", "a log line", "from zero", {"skipped_records": "records"}),
    ChartSpec(
        "Data",
        "Audio chunks encoded",
        "a log line",
        "from zero",
        {"audio_chunks_encoded": "chunks"},
    ),
    # Health
    ChartSpec(
        "Health",
        "Benchmark replies without a clear answer",
        "an evaluation",
        "from zero",
        {"evaluation_unparsed/*": ""},
    ),
    ChartSpec(
        "Health",
        "Benchmark items without a reply",
        "an evaluation",
        "from zero",
        {"evaluation_failed/*": ""},
    ),
    ChartSpec(
        "Health", "Gradient norm", "before clipping", "log", {"gradient_norm": "all parameters"}
    ),
    ChartSpec(
        "Health",
        "Steps skipped",
        "not finite",
        "from zero",
        {"skipped_steps": "steps", "skipped_updates": "updates"},
    ),
    ChartSpec(
        "Health",
        "Steps with nothing to learn",
        "all gradients zero",
        "from zero",
        {"zero_gradient_steps": "steps", "zero_gradient_updates": "updates"},
    ),
    ChartSpec(
        "Health",
        "Clipped ratios",
        "share of tokens",
        "from zero",
        {"clip_fraction": "clipped", "clamped_fraction": "clamped"},
    ),
    ChartSpec("Health", "Importance ratio", "mean", "around", {"ratio": "policy"}),
    _of_rewards("Health", "sampler_mismatch", "Sampler mismatch", "mean ratio", "around"),
    ChartSpec(
        "Health", "Rollouts learnt from", "share", "from zero", {"valid_rollouts": "rollouts"}
    ),
    _of_rewards("Health", "abstained", "Abstentions of the judge", _SHARE_OF_REPLIES),
    ChartSpec(
        "Health",
        "Abstentions by kind",
        _SHARE_OF_REPLIES,
        "from zero",
        {"abstained_rubric": "rubric", "abstained_pairwise": "pairwise"},
    ),
    _of_rewards("Health", "reward_flips", "Verdicts that follow the order", _SHARE_OF_REPLIES),
    _of_rewards("Health", "truncated", "Truncated", _SHARE_OF_REPLIES),
    _of_rewards("Health", "well_formed", "Well-formed", _SHARE_OF_REPLIES),
    ChartSpec(
        "Health",
        "Waiting for checkpoints",
        "share of the time",
        "from zero",
        {"checkpoint_wait_fraction": "wait"},
    ),
    ChartSpec(
        "Health",
        "Peak of device memory",
        "bytes",
        "from zero",
        {"device_memory_peak_bytes": "device 0"},
    ),
)


@dataclasses.dataclass(frozen=True)
class ChartGroup:
    """The charts under one heading.

    Attributes:
        name: the heading.
        charts: those whose curves change.
        flat: those whose curves are constant and finite.
    """

    name: Group
    charts: tuple[Chart, ...]
    flat: tuple[Chart, ...]


def chart_groups(run: LoggedRun) -> list[ChartGroup]:
    """Returns the groups of a run's charts, empty ones left out.

    Every metric of the run is in exactly one chart, but for the running totals of records. A metric
    that `CHARTS` does not know gets a chart of its own under "Health".
    """
    names = [name for name in run.metric_names if name.split("/")[0] not in _RUNNING_TOTALS]
    terms = [name for name in names if name.startswith("loss/")]
    if terms == ["loss/next_token"]:  # the only term has weight 1: its curve is the total's
        names = [name for name in names if name != "loss"]
    by_group: dict[Group, list[Chart]] = {group: [] for group in GROUPS}
    drawn: set[str] = set()
    for spec in CHARTS:
        if labels := _labels(spec, names):
            drawn |= labels.keys()
            by_group[spec.group].append(_chart(run, spec.title, spec.unit, spec.scale, labels))
    for name in names:
        if name not in drawn:
            title = metric_title(name)
            by_group["Health"].append(_chart(run, title, "", "around", {name: title}))
    return [
        ChartGroup(
            group,
            charts=tuple(chart for chart in charts if not is_flat(chart)),
            flat=tuple(chart for chart in charts if is_flat(chart)),
        )
        for group, charts in by_group.items()
        if charts
    ]


def is_flat(chart: Chart) -> bool:
    """Returns whether every curve of a chart is constant; a value that is not finite never is."""
    for series in chart.series:
        values = [value for segment in series.segments for _, value in segment]
        if not all(map(math.isfinite, values)):
            return False
        largest = max(map(abs, values))
        if max(values) - min(values) > _FLAT_TOLERANCE * max(1.0, largest):
            return False
    return True


def metric_title(name: str) -> str:
    """Returns a metric's name in words: "device_memory/peak" -> "Device memory: peak"."""
    words = name.replace("_", " ").replace("/", ": ").strip()
    return words[:1].upper() + words[1:]


def _labels(spec: ChartSpec, names: Sequence[str]) -> dict[str, str]:
    """Returns metric -> label for those curves of a chart that the run logged."""
    labels = {}
    for metric, label in spec.curves.items():
        if metric.endswith("/*"):
            prefix = metric.removesuffix("*")
            for name in names:
                if name.startswith(prefix) and name not in _NAMED_METRICS:
                    labels[name] = name.removeprefix(prefix).replace("_", " ")
        elif metric in names:
            labels[metric] = label
    return labels


_NAMED_METRICS = frozenset(metric for spec in CHARTS for metric in spec.curves)


def _chart(run: LoggedRun, title: str, unit: str, scale: Scale, labels: Mapping[str, str]) -> Chart:
    series = tuple(
        Series(metric, label, tuple(map(tuple, run.points(metric).values())))
        for metric, label in labels.items()
    )
    return Chart(title, unit, scale, series, run.spans)
