"""Tests the expected time of a step: its arithmetic, and against published runs of MaxText.

A published run is described by what its chips compute for a token, so that no program is compiled;
test_plans.py compiles two. Sources, both at github.com/AI-Hypercomputer: maxtext, commit e591f30c,
src/maxtext/configs/tpu/{v4,v5e,v5p}/README.md with the .sh beside them; tpu-recipes, commit
c8cfe2f6, training/trillium/*/README.md and training/ironwood/README.md.
"""

import dataclasses

import pytest

from stepaudio_jax.parallel import CHIPS
from stepaudio_jax.planning.hlo import HloModule
from stepaudio_jax.planning.step_time import (
    ATTENTION_UTILIZATION,
    LINK_UTILIZATION,
    MATMUL_UTILIZATION,
    StepWork,
    TimedCollective,
    read_step_work,
    step_time,
)
from stepaudio_jax.planning.topology import Topology, parse_topology


@dataclasses.dataclass(frozen=True)
class Chip:
    """Has the attributes of a compile-only device that `read_step_work` uses."""

    coords: tuple[int, ...]
    slice_index: int = 0


def grid(topology: Topology) -> list[Chip]:
    """Returns the devices of a topology."""
    x, y, *rest = topology.shape
    layers = range(rest[0]) if rest else range(1)
    return [
        Chip((i, j, k), index)
        for index in range(topology.slices)
        for i in range(x)
        for j in range(y)
        for k in layers
    ]


def seconds_of(kind: str, size: str, group: str, topology: Topology) -> float:
    """Returns the seconds of one collective at the links' peak."""
    hlo = (
        f"ENTRY %main (x: {size}) -> {size} {{\n"
        f"  %c = {size}{{0}} {kind}(%x), channel_id=1, replica_groups={group}\n"
        "}\n"
    )
    (exchange,) = read_step_work(HloModule(hlo), topology, grid(topology)).exchanges
    return exchange.seconds


def test_group_uses_the_links_of_the_axes_in_which_it_extends():
    size, sent = "f32[16000000]", 64e6
    cube, half, flat = (parse_topology(name) for name in ("v5p:4x4x4", "v5p:2x4x4", "v5e:8x8"))
    # A whole cube is a torus: six links of 100 GB/s. Along one axis, a ring of four: two of them.
    assert seconds_of("all-gather", size, "[1,64]<=[64]", cube) == pytest.approx(
        sent * 63 / 64 / 600e9
    )
    assert seconds_of("all-gather", size, "[16,4]<=[64]", cube) == pytest.approx(
        sent * 3 / 4 / 200e9
    )
    # Two neighbours have one link, and so has the end of an open line.
    assert seconds_of("all-reduce", size, "{{0,1},{2,3}}", cube) == pytest.approx(
        2 * sent / 2 / 100e9
    )
    assert seconds_of("all-gather", size, "[1,32]<=[32]", half) == pytest.approx(
        sent * 31 / 32 / 300e9
    )
    assert seconds_of("all-gather", size, "[1,64]<=[64]", flat) == pytest.approx(
        sent * 63 / 64 / 100e9
    )


def test_between_slices_the_network_carries_each_chips_part():
    slices = parse_topology("v5e:8x8", slices=2)
    within = 2 * 64e6 * 63 / 64 / 100e9
    across = 2 * (64e6 / 64) / 2 / 3.1e9
    assert seconds_of("all-reduce", "f32[16000000]", "[1,128]<=[128]", slices) == pytest.approx(
        within + across
    )
    assert seconds_of(
        "all-reduce", "f32[16000000]", "[64,2]<=[2,64]T(1,0)", slices
    ) == pytest.approx(2 * 64e6 / 2 / 3.1e9)


def loop_work(exchanges: list[TimedCollective], seconds: list[float]) -> StepWork:
    """Returns the work of a loop of ten iterations, whose instructions take these seconds each."""
    rate = MATMUL_UTILIZATION["v5p"].expected * CHIPS["v5p"].flops
    return StepWork(
        10 * sum(seconds) * rate, 0.0, {"body": [(each * rate, 0.0) for each in seconds]}, exchanges
    )


@pytest.mark.parametrize(
    ("exchanges", "waiting"),
    [
        ([(0.3, 1, 1)], 3.0),  # the program waits for it
        ([(0.3, 0, 3)], 0.0),  # 0.5 s of products overlap with it
        ([(0.8, 0, 3)], 3.0),
        ([(0.3, 0, 2), (0.3, 1, 3)], 1.0),  # time that hides one hides no other
        ([(0.3, 2, 2), (0.3, 0, 1)], 4.0),
    ],
)
def test_products_hide_the_collectives_that_overlap_with_them(exchanges, waiting):
    """Each exchange is (seconds, first, last); the four instructions take 0.1, 0.1, 0.3 and 0 s."""
    timed = [
        TimedCollective(seconds * LINK_UTILIZATION.expected, 10, "body", first, last)
        for seconds, first, last in exchanges
    ]
    time = step_time(loop_work(timed, [0.1, 0.1, 0.3, 0.0]), "v5p", CHIPS["v5p"])
    assert time.products == pytest.approx(5.0)
    assert time.links == pytest.approx(10 * sum(seconds for seconds, _, _ in exchanges))
    assert time.waiting == pytest.approx(waiting)
    assert time.step == pytest.approx(5.0 + waiting)


def test_every_kind_of_chip_has_ordered_utilizations():
    for utilizations in (MATMUL_UTILIZATION, ATTENTION_UTILIZATION):
        assert utilizations.keys() == CHIPS.keys()
        for utilization in utilizations.values():
            assert 0 < utilization.low < utilization.expected < utilization.high < 1


@dataclasses.dataclass(frozen=True)
class Run:
    """Describes a published run of a dense decoder, and what it computes again.

    Attributes:
        kind: of chip.
        tokens_per_second: of a chip; or, where only operations a second are published, those.
        layers, hidden, heads, kv_heads, head_dim, ffn, vocabulary, length: the shape.
        recomputed: products of a layer that its rematerialisation computes again.
        forward: how often attention's forward kernel runs.
        backward: products of attention's backward kernels.
        matrices: of the feed-forward layer.
    """

    kind: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    length: int
    recomputed: tuple[str, ...]
    tokens_per_second: float = 0.0
    flops_per_second: float = 0.0
    head_dim: int = 128
    forward: int = 2
    backward: int = 7
    matrices: int = 3

    def products(self) -> tuple[float, float]:
        """Returns the products' operations of a token: the model's, and those that are computed."""
        queries, keys, ffn = (
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
            self.hidden * self.ffn,
        )
        sizes = {
            "qkv": self.hidden * (queries + 2 * keys),
            "out": self.hidden * queries,
            "up": (self.matrices - 1) * ffn,
        }
        layer = sum(sizes.values()) + ffn
        model = 6.0 * (self.layers * layer + self.hidden * self.vocabulary)
        return model, model + 2.0 * self.layers * sum(sizes[name] for name in self.recomputed)

    def attention(self, products: int) -> float:
        """Returns the operations of a token's attention; the causal mask halves them."""
        return 2.0 * products * self.layers * self.heads * self.head_dim * self.length / 2

    def seconds(self) -> float:
        """Returns the measured seconds of a token in one chip.

        Published operations count attention without its mask.
        """
        if self.tokens_per_second:
            return 1 / self.tokens_per_second
        return (self.products()[0] + 2 * self.attention(6)) / self.flops_per_second

    def expected(self, quality: str) -> float:
        """Returns the estimated seconds of a token in one chip.

        Links are left out: with MaxText's flags products hide most of their time.
        """
        chip = CHIPS[self.kind]
        computed = StepWork(
            self.products()[1], self.attention(2 * self.forward + self.backward), {}, []
        )
        return step_time(
            computed, self.kind, dataclasses.replace(chip, flops=chip.flops * chip.devices), quality
        ).step


ALL = ("qkv", "out", "up")  # "full": a layer's last product is not needed for its gradients
LLAMA_70B = {"layers": 80, "hidden": 8192, "heads": 64, "kv_heads": 8, "ffn": 28672}
LLAMA_8B = {"layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "ffn": 14336}
DEFAULT = {"heads": 64, "kv_heads": 64, "ffn": 28672, "vocabulary": 32000, "length": 2048}
RUNS = {
    "v5p, 32B": Run("v5p", 32, 8192, recomputed=(), flops_per_second=328e12, **DEFAULT),
    "v5p, 32B, two slices": Run("v5p", 32, 8192, recomputed=(), flops_per_second=319e12, **DEFAULT),
    "v5p, 64B": Run("v5p", 64, 8192, recomputed=(), flops_per_second=323e12, **DEFAULT),
    "v5e, 16B": Run("v5e", 32, 4096, recomputed=ALL, flops_per_second=120e12, **DEFAULT),
    "v5e, 32B": Run("v5e", 32, 8192, recomputed=ALL, flops_per_second=132e12, **DEFAULT),
    "v5e, 64B": Run("v5e", 64, 8192, recomputed=ALL, flops_per_second=118e12, **DEFAULT),
    "v4, 22B": Run(
        "v4",
        48,
        6144,
        24,
        24,
        24576,
        32000,
        2048,
        ALL,
        flops_per_second=156e12,
        head_dim=256,
        matrices=2,
    ),
    "v4, 52B": Run(
        "v4",
        32,
        12288,
        32,
        32,
        49152,
        32000,
        2048,
        ALL,
        flops_per_second=154e12,
        head_dim=256,
        matrices=2,
    ),
    "v6e-256, Llama 3.1 70B": Run(
        "v6e",
        vocabulary=128256,
        length=8192,
        recomputed=("out", "up"),
        tokens_per_second=960.248,
        backward=5,
        **LLAMA_70B,
    ),
    "v6e-128, Llama 3.1 70B": Run(
        "v6e",
        vocabulary=128256,
        length=8192,
        recomputed=("out", "up"),
        tokens_per_second=941.976,
        backward=5,
        **LLAMA_70B,
    ),
    "v6e-256, Llama 3.1 8B": Run(
        "v6e",
        vocabulary=128256,
        length=8192,
        recomputed=("up",),
        tokens_per_second=7207.336,
        backward=5,
        **LLAMA_8B,
    ),
    "v6e-8, Mistral 7B": Run(
        "v6e",
        vocabulary=32000,
        length=8192,
        recomputed=("up",),
        tokens_per_second=7776.813,
        backward=5,
        **LLAMA_8B,
    ),
    "v6e-256, Llama 2 70B": Run(
        "v6e",
        vocabulary=32000,
        length=4096,
        recomputed=("out", "up"),
        tokens_per_second=905.021,
        **LLAMA_70B,
    ),
    "tpu7x, 64 chips, Llama 3.1 70B": Run(
        "tpu7x",
        vocabulary=128256,
        length=8192,
        recomputed=("out", "up"),
        tokens_per_second=2686.98,
        forward=1,
        backward=5,
        **LLAMA_70B,
    ),
    "tpu7x, 256 chips, 131072 tokens": Run(
        "tpu7x",
        vocabulary=128256,
        length=131072,
        recomputed=("out", "up"),
        tokens_per_second=963.03,
        forward=1,
        backward=5,
        **LLAMA_70B,
    ),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_published_runs_lie_in_the_estimated_range(run):
    assert run.expected("high") < run.seconds() < run.expected("low")
    assert run.expected("expected") == pytest.approx(run.seconds(), rel=0.15)


@pytest.mark.parametrize(
    ("run", "published"),
    [("v5p, 32B", 0.7147), ("v5p, 32B, two slices", 0.6943), ("v6e-256, Llama 3.1 70B", 0.5033)],
)
def test_published_utilization_is_reproduced(run, published):
    """Shows that the runs are read correctly: attention is counted as MaxText counts it."""
    run = RUNS[run]
    flops = run.products()[0] + 2 * run.attention(6)
    assert flops / run.seconds() / CHIPS[run.kind].flops == pytest.approx(published, abs=2e-3)
