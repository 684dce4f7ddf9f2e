"""Tests that a quick plan is made again with full effort where it leaves little room."""

import dataclasses

import pytest

from stepaudio_jax.planning.report import escalate_if_tight


@dataclasses.dataclass
class FakePlan:
    effort: str
    peak_bytes_per_chip: int
    memory_bytes_per_chip: int = 1000


@pytest.mark.parametrize(
    ("effort", "peak", "efforts"),
    [
        ("quick", 300, ["quick"]),
        ("quick", 900, ["quick"]),
        ("quick", 901, ["quick", "full"]),
        ("quick", 48000, ["quick", "full"]),
        ("full", 300, ["full"]),
        ("full", 950, ["full"]),
    ],
)
def test_full_effort_where_it_is_asked_for_or_a_quick_plan_leaves_little_room(
    effort, peak, efforts
):
    efforts_made = []

    def make(effort):
        efforts_made.append(effort)
        return FakePlan(effort, peak)

    assert escalate_if_tight(make, effort).effort == efforts[-1]
    assert efforts_made == efforts
