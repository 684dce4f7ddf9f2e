"""How many slots fit is searched for with few compilations."""

import pytest

from stepaudio_jax.planning.serving_plan import ServingPlan, max_slots_that_fit

GB = 10**9


def search(*, available, weights, temporaries, per_slot, refused=()):
    """(slots found, fits, slots tried), where a plan's peak is weights, cache and temporaries(slots)."""
    tried = []

    def compiled(slots):
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

    plan = max_slots_that_fit(compiled, max(1, (available - weights) // per_slot), per_slot)
    return plan.slots, plan.fits, tried


@pytest.mark.parametrize("constant", [0, GB // 3, 2 * GB, 7 * GB])
def test_what_temporaries_take_is_left_out(constant):
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


def test_where_not_even_one_fits_the_plan_says_so():
    found, fits, tried = search(
        available=16 * GB, weights=15 * GB, temporaries=lambda slots: 3 * GB, per_slot=GB // 2
    )
    assert (found, fits) == (1, False)
    assert len(tried) <= 3


def test_a_program_that_the_compiler_refuses_does_not_fit_by_its_peak_alone():
    """The compiler rounds the peak of what it refuses."""
    settings = {
        "available": 16 * GB,
        "weights": 8 * GB,
        "temporaries": lambda slots: 0,
        "per_slot": GB // 2,
    }
    found, fits, tried = search(**settings, refused=(16,))
    assert (found, fits, tried) == (15, True, [16, 15])
