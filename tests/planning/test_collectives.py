"""Tests the bytes that a program sends, on texts as the TPU compiler writes them."""

import pytest

from stepaudio_jax.errors import PlanError
from stepaudio_jax.planning.collectives import collective_bytes, find_collectives, first_group
from stepaudio_jax.planning.hlo import HloModule

LOOP = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %kernel = bf16[8,128]{1,0:T(8,128)(2,1)} custom-call(%x), frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, backend_config={}
  %gathered = bf16[64,128]{1,0} all-gather(%x), \
replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}
  %reduced = (f32[4,2]{1,0}, f32[4]{0}) all-reduce(%y, %z), replica_groups=[2,4]<=[8], to_apply=%add
}

%condition (p: (s32[], bf16[8,128])) -> pred[] {
  %most = s32[]{:T(128)} constant(64)
  %count = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%count, %most), direction=LT
}

ENTRY %main (p: bf16[8,128]) -> bf16[8,128] {
  %loop = (s32[], bf16[8,128]{1,0:T(8,128)(2,1)}) while(%start), condition=%condition, body=%body
  %scattered = f32[16]{0} reduce-scatter(%w), replica_groups={{0,1},{2,3}}, dimensions={0}, \
to_apply=%add
}
"""


def test_collectives_in_a_loop_count_once_an_iteration():
    sent = collective_bytes(LOOP)
    assert sent == {
        "all-gather": 64 * (64 * 128 * 2) * 7 / 8,
        "all-reduce": 64 * 2 * (8 + 4) * 4 * 3 / 4,
        "reduce-scatter": 16 * 4 * 1,
    }


def test_trip_count_stated_by_the_compiler_takes_precedence():
    stated = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert collective_bytes(stated)["all-gather"] == 3 * (64 * 128 * 2) * 7 / 8


def test_loop_that_counts_by_two_runs_half_as_often():
    """The compiler makes such loops of a product and its collective: two ring steps a run."""
    counted = LOOP.replace(
        "  %kernel =",
        "  %c = s32[] get-tuple-element(%p), index=0\n"
        "  %two = s32[] constant(2)\n"
        "  %copied = s32[] copy(%c)\n"
        "  %next = s32[] add(%copied, %two)\n"
        "  ROOT %t = (s32[], bf16[8,128]{1,0}) tuple(%next, %k)\n"
        "  %kernel =",
    )
    assert collective_bytes(counted)["all-gather"] == 32 * (64 * 128 * 2) * 7 / 8
    assert (
        collective_bytes(counted.replace("constant(2)", "constant(1)"))["all-gather"]
        == 64 * (64 * 128 * 2) * 7 / 8
    )


def test_loop_of_unknown_length_is_an_error():
    with pytest.raises(PlanError, match="all-gather stands in a loop of unknown length"):
        collective_bytes(LOOP.replace("direction=LT", "direction=NE"))


@pytest.mark.parametrize(
    "branches",
    ["branch_computations={%less, %more}", "true_computation=%less, false_computation=%more"],
    ids=["listed", "named"],
)
def test_every_branch_of_a_conditional_counts(branches):
    gather = "  ROOT %g = f32[{}]{{0}} all-gather(%p), replica_groups=[1,2]<=[2]"
    branch = "%{} (p: f32[{}]) -> f32[{}] {{\n{}\n}}\n"
    hlo = "".join(
        branch.format(name, n // 2, n, gather.format(n)) for name, n in (("less", 8), ("more", 32))
    )
    hlo += (
        "ENTRY %main (p: s32[]) -> f32[] {\n"
        f"  ROOT %c = f32[] conditional(%p, %a, %b), {branches}\n"
        "}\n"
    )
    assert collective_bytes(hlo) == {"all-gather": (8 + 32) * 4 / 2}


# As libtpu writes a gather that overlaps with two products: it starts in a fusion, continues in two
# others, and ends in a fourth.
CHAIN = """
%start (x: bf16[8,128]) -> (bf16[8,128], bf16[64,128], u32[]) {
  %begun = bf16[64,128]{1,0} all-gather(%x), channel_id=71, replica_groups=[1,8]<=[8], \
frontend_attributes={chain_id="6"}
  ROOT %t = (bf16[8,128], bf16[64,128], u32[]) tuple(%x, %begun, %flag)
}

%async_collective_fusion.1 (x: bf16[8,128], y: bf16[32,64], z: bf16[64,16]) -> (bf16[32,16], \
bf16[64,128]) {
  %product = bf16[32,16]{1,0} dot(%y, %z), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %going = bf16[64,128]{1,0} all-gather(%x), channel_id=71, replica_groups=[1,8]<=[8], \
frontend_attributes={chain_id="6"}
  ROOT %t = (bf16[32,16], bf16[64,128]) tuple(%product, %going)
}

%end (x: bf16[8,128]) -> bf16[64,128] {
  ROOT %ended = bf16[64,128]{1,0} all-gather(%x), channel_id=71, replica_groups=[1,8]<=[8], \
frontend_attributes={chain_id="6"}
}

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %async-collective-start = (bf16[8,128]{1,0}, bf16[64,128]{1,0}, u32[]) fusion(%x), \
kind=kCustom, calls=%start
  %fusion.1 = (bf16[32,16]{1,0}, bf16[64,128]{1,0}) fusion(%x, %y, %z), kind=kOutput, \
calls=%async_collective_fusion.1
  %fusion.2 = (bf16[32,16]{1,0}, bf16[64,128]{1,0}) fusion(%x, %y, %z), kind=kOutput, \
calls=%async_collective_fusion.1
  %async-collective-done = bf16[64,128]{1,0} fusion(%x), kind=kCustom, calls=%end
}

%condition (p: (s32[], bf16[8,128])) -> pred[] {
  %most = s32[] constant(48)
  ROOT %less = pred[] compare(%count, %most), direction=LT
}

ENTRY %main (p: bf16[8,128]) -> bf16[8,128] {
  %loop = (s32[], bf16[8,128]{1,0}) while(%s), condition=%condition, body=%body
}
"""


def test_gather_that_overlaps_with_products_counts_once():
    assert collective_bytes(CHAIN) == {"all-gather": 48 * (64 * 128 * 2) * 7 / 8}
    (collective,) = find_collectives(HloModule(CHAIN))
    assert (collective.first, collective.last) == (0, 3)


def test_chains_of_one_channel_are_distinguished():
    again = CHAIN.replace("channel_id=71", "channel_id=1")
    both = again.replace(
        "ENTRY",
        again.split("ENTRY")[0].replace('chain_id="6"', 'chain_id="7"').replace("%", "%other_")
        + "ENTRY",
    )
    both = both.replace(
        "ENTRY %main (p: bf16[8,128]) -> bf16[8,128] {",
        "ENTRY %main (p: bf16[8,128]) -> bf16[8,128] {\n"
        "  %l = (s32[]) while(%s), condition=%other_condition, body=%other_body",
    )
    assert collective_bytes(both)["all-gather"] == 2 * collective_bytes(CHAIN)["all-gather"]


def test_asynchronous_collective_counts_once_from_its_start_to_its_end():
    hlo = """
%wrapped (x: f32[16]) -> f32[64] {
  ROOT %inside = f32[64]{0} all-gather(%x), replica_groups=[1,4]<=[4], dimensions={0}
}

ENTRY %main (x: f32[16]) -> f32[64] {
  %all-gather-start = (f32[16]{0}, f32[64]{0}) all-gather-start(%x), channel_id=1, \
replica_groups=[1,4]<=[4]
  %wrapped-start = ((f32[16]{0}), f32[64]{0}, u32[]) async-start(%x), calls=%wrapped
  %product = f32[8,8]{1,0} dot(%y, %z), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %wrapped-update = ((f32[16]{0}), f32[64]{0}, u32[]) async-update(%wrapped-start), calls=%wrapped
  %all-gather-done = f32[64]{0} all-gather-done(%all-gather-start)
  %wrapped-done = f32[64]{0} async-done(%wrapped-update), calls=%wrapped
}
"""
    assert collective_bytes(hlo) == {"all-gather": 2 * 64 * 4 * 3 / 4}
    assert sorted(
        (collective.first, collective.last) for collective in find_collectives(HloModule(hlo))
    ) == [(0, 4), (1, 5)]


def test_collective_of_ironwoods_sparse_cores_spans_its_calls():
    hlo = """
%called (x: f32[16]) -> f32[64] {
  ROOT %inside = f32[64]{0} all-gather(%x), channel_id=3, replica_groups=[1,4]<=[4], dimensions={0}
}, execution_thread="sparsecore"

ENTRY %main (x: f32[16]) -> f32[64] {
  %g.call-start = ((f32[16]{0}, token[]), f32[64]{0}) call-start(%x, %t), \
async_execution_thread="sparsecore", to_apply=%called
  %product = f32[8,8]{1,0} dot(%y, %z), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %g.call-done = f32[64]{0} call-done(%g.call-start)
}
"""
    assert collective_bytes(hlo) == {"all-gather": 64 * 4 * 3 / 4}
    (collective,) = find_collectives(HloModule(hlo))
    assert (collective.first, collective.last) == (0, 2)


def test_collectives_of_shard_map_share_a_channel_and_count_each():
    """Uses channel 1 for all of them, as JAX does."""
    line = (
        "  %g{} = f32[64]{{0}} all-gather(%x), channel_id=1, replica_groups={{{{0,1,2,3}}}}, "
        "use_global_device_ids=true\n"
    )
    hlo = f"ENTRY %main (x: f32[16]) -> f32[64] {{\n{line.format(1)}{line.format(2)}}}\n"
    assert collective_bytes(hlo) == {"all-gather": 2 * 64 * 4 * 3 / 4}


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("replica_groups={{0,2},{1,3}}", [0, 2]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [0, 2, 4, 6]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [0, 1, 4, 5]),
        ("source_target_pairs={{0,1},{1,0}}", [0, 1]),
    ],
)
def test_first_group_of_devices_is_parsed_in_every_notation(groups, members):
    assert first_group(f"  %g = f32[8]{{0}} all-gather(%x), {groups}, dimensions={{0}}") == members
