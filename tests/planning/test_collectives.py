"""Bytes sent by a program, from texts as the TPU compiler writes them."""

import pytest

from stepaudio_jax.planning.collectives import HloError, collective_bytes

LOOP = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %kernel = bf16[8,128]{1,0:T(8,128)(2,1)} custom-call(%x), frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, backend_config={}
  %gathered = bf16[64,128]{1,0:T(8,128)} all-gather(%x), replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}
  %reduced = (f32[4,2]{1,0}, f32[4]{0}) all-reduce(%y, %z), replica_groups=[2,4]<=[8], to_apply=%add
}

%condition (p: (s32[], bf16[8,128])) -> pred[] {
  %most = s32[]{:T(128)} constant(64)
  %count = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%count, %most), direction=LT
}

ENTRY %main (p: bf16[8,128]) -> bf16[8,128] {
  %loop = (s32[], bf16[8,128]{1,0:T(8,128)(2,1)}) while(%start), condition=%condition, body=%body
  %scattered = f32[16]{0} reduce-scatter(%w), replica_groups={{0,1},{2,3}}, dimensions={0}, to_apply=%add
}
"""


def test_a_loops_collectives_count_as_often_as_it_runs():
    sent = collective_bytes(LOOP)
    assert sent == {
        "all-gather": 64 * (64 * 128 * 2) * 7 / 8,
        "all-reduce": 64 * 2 * (8 + 4) * 4 * 3 / 4,
        "reduce-scatter": 16 * 4 * 1,
    }


def test_the_compilers_own_count_goes_first():
    stated = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert collective_bytes(stated)["all-gather"] == 3 * (64 * 128 * 2) * 7 / 8


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(HloError, match="all-gather stands in a loop of unknown length"):
        collective_bytes(LOOP.replace("direction=LT", "direction=NE"))


@pytest.mark.parametrize(
    "branches",
    ["branch_computations={%less, %more}", "true_computation=%less, false_computation=%more"],
    ids=["listed", "named"],
)
def test_every_branch_counts(branches):
    gather = "  ROOT %g = f32[{}]{{0}} all-gather(%p), replica_groups=[1,2]<=[2]"
    branch = "%{} (p: f32[{}]) -> f32[{}] {{\n{}\n}}\n"
    hlo = "".join(branch.format(name, n // 2, n, gather.format(n)) for name, n in (("less", 8), ("more", 32)))
    hlo += f"ENTRY %main (p: s32[]) -> f32[] {{\n  ROOT %c = f32[] conditional(%p, %a, %b), {branches}\n}}\n"
    assert collective_bytes(hlo) == {"all-gather": (8 + 32) * 4 / 2}
