"""How hard the compiler tries: little, where that shows that the job fits."""

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar

Effort = Literal["quick", "full"]

# "full" is what a job is compiled with; "quick" is EFFORT_O1 of ExecutionOptions in XLA's
# xla.proto. Four plans of training 32 B models took 0.4 to 0.6 of the time with it, with libtpu
# 0.0.42.1 and 0.0.51. Their peaks were 1 to 6 % lower; that of RLHF on v5p:4x4x8 was 7 % higher.
COMPILER_OPTIONS: dict[Effort, dict[str, Any] | None] = {
    "quick": {"optimization_level": 19},
    "full": None,
}
_MAX_QUICK_MEMORY_FRACTION = 0.9  # of a chip's memory: a quick plan that takes no more


class AnyPlan(Protocol):
    """What plans have in common here."""

    @property
    def memory_bytes_per_chip(self) -> int: ...

    @property
    def peak_bytes_per_chip(self) -> int: ...


PlanT = TypeVar("PlanT", bound=AnyPlan)


def escalate_if_tight(make: Callable[[Effort], PlanT], effort: Effort) -> PlanT:
    """The plan made with that effort, or with full effort where a quick one leaves little room or none."""
    plan = make(effort)
    if (
        effort == "quick"
        and plan.peak_bytes_per_chip > _MAX_QUICK_MEMORY_FRACTION * plan.memory_bytes_per_chip
    ):
        return make("full")
    return plan
