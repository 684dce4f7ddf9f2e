"""Tests the search for the number of slots that fit."""

import pytest

from stepaudio_jax.planning.serving_plan import ServingPlan, max_slots_that_fit

GB = 10**9


def search(*, available, weights, temporaries, per_slot, refused=()):
    """Returns (slots found, fits, slots tried) with plans whose memory is given by a formula."""
    tried = []

    def plan_for_slots(slots):
        tried.append(slots)
        peak = weights + slots * per_slot + temporaries(slots)
        return ServingPlan(
            topology="",
            chips=1,
            mesh={},
            program="decode",
            slots=slots,
            slot_tokens=1,
            cache_dtype="bfloat16",
            fits=peak <= available and slots not in refused,
            memory_bytes_per_chip=available,
            peak_bytes_per_chip=peak,
            argument_bytes_per_chip=0,
            temporary_bytes_per_chip=0,
            parameter_bytes_per_chip=0,
            cache_bytes_per_chip=0,
            prompt_bytes_per_chip=0,
            step_seconds=1.0,
            tokens_per_second=1.0,
            compile_seconds=0.0,
            compiler_version="",
        )

    plan = max_slots_that_fit(plan_for_slots, max(1, (available - weights) // per_slot), per_slot)
    return plan.slots, plan.fits, tried


@pytest.mark.parametrize("constant", [0, GB // 3, 2 * GB, 7 * GB])
def test_constant_temporaries_leave_room_for_fewer_slots(constant):
    found, fits, tried = search(
        available=16 * GB, weights=8 * GB, temporaries=lambda slots: constant, per_slot=GB // 2
    )
    assert (found, fits) == ((8 * GB - constant) // (GB // 2), True)
    assert len(tried) <= 3


def test_temporaries_that_grow_with_the_slots():
    found, fits, _ = search(
        available=16 * GB,
        weights=8 * GB,
        temporaries=lambda slots: slots * GB // 2,
        per_slot=GB // 2,
    )
    assert (found, fits) == (8, True)


def test_plan_that_does_not_fit_where_no_slot_does():
    found, fits, tried = search(
        available=16 * GB, weights=15 * GB, temporaries=lambda slots: 3 * GB, per_slot=GB // 2
    )
    assert (found, fits) == (1, False)
    assert len(tried) <= 3


def test_refused_program_does_not_fit_whatever_its_peak():
    """The compiler rounds the peak of a program that it refuses."""
    settings = {
        "available": 16 * GB,
        "weights": 8 * GB,
        "temporaries": lambda slots: 0,
        "per_slot": GB // 2,
    }
    found, fits, tried = search(**settings, refused=(16,))
    assert (found, fits, tried) == (15, True, [16, 15])
