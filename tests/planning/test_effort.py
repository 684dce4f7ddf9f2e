"""A quick plan shows that a job fits, or is made again in full."""

import dataclasses

import pytest

from stepaudio_jax.planning.effort import decided


@dataclasses.dataclass
class Made:
    effort: str
    peak_bytes_per_chip: int
    memory_bytes_per_chip: int = 1000


@pytest.mark.parametrize(
    ("peak", "efforts"), [(300, ["quick"]), (900, ["quick"]), (901, ["quick", "full"]), (48000, ["quick", "full"])]
)
def test_full_effort_where_a_quick_plan_leaves_little_room(peak, efforts):
    asked = []

    def make(effort):
        asked.append(effort)
        return Made(effort, peak)

    assert decided(make, "quick").effort == efforts[-1]
    assert asked == efforts


def test_full_effort_at_once():
    asked = []

    def make(effort):
        asked.append(effort)
        return Made(effort, 950)

    assert decided(make, "full").effort == "full"
    assert asked == ["full"]
