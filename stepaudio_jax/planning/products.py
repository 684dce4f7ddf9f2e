"""Floating-point operations of a compiled program's matrix products, as its optimised HLO has them.

What rematerialisation computes again is counted, as often as it is computed. A multiplication and
an addition are two operations.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from stepaudio_jax.planning.hlo import HloError, HloInstruction, HloModule, arrays

# Products of [queries, head] x [head, keys], or of that size, in each of the kernels of
# jax.experimental.pallas.ops.tpu. splash_attention: forward q k and w v; for dq again q k, then do
# v and ds k; for dk and dv those of dq but ds q, and w do.
_KERNEL_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4, "fused_bwd": 5}
_KERNEL = re.compile(r"splash_m[hq]a_(fwd|dq|dkv|fused_bwd)")

_WINDOW = ("stride", "lhs_dilate", "rhs_dilate")


@dataclasses.dataclass(frozen=True)
class AttentionKernelCall:
    """A Pallas kernel of attention, as often as its computation runs.

    Attributes:
        heads, queries, keys, head_dim: of its operands, in one device.
        products: matrix products of heads x queries x keys x head_dim.
        causal: whether only the blocks at and below the diagonal are computed; a kernel that
            computes all blocks has no schedule of them.
        rows: of the batch, that one run of it computes.
        times: how often it runs in one run of the program.
        computation, place: where it stands.
    """

    heads: int
    queries: int
    keys: int
    head_dim: int
    products: int
    causal: bool
    rows: int
    times: int
    computation: str
    place: int

    @property
    def flops(self) -> float:
        """Returns the operations of one run and one row; a causal mask halves them, but for the blocks on the diagonal."""
        full = 2.0 * self.products * self.heads * self.queries * self.keys * self.head_dim
        return full / 2 if self.causal else full


def scheduled_matmul_flops(module: HloModule) -> dict[str, list[float]]:
    """Returns for every computation that runs by itself the operations of each of its instructions, fused products included.

    Those of a loop are not in the instruction that is the loop, but in the loop's own computation.
    """
    flops = {}
    for name in module.scheduled:
        flops[name] = [
            _flops(module, name, instruction)
            + sum(
                _flops(module, computation, part)
                for computation, part in module.fused_instructions(instruction)
            )
            for instruction in module.computations[name]
        ]
    return flops


def matmul_flops(module: HloModule) -> float:
    """Returns the operations of all matrix products in one run of a program, in one device; attention kernels are none of them.

    Raises:
        HloError: a loop of which the text does not tell how often it runs holds a product.
    """
    return sum(
        sum(flops) * module.run_count(name)
        for name, flops in scheduled_matmul_flops(module).items()
        if any(flops)
    )


def attention_kernels(module: HloModule) -> list[AttentionKernelCall]:
    """Returns the program's splash attention kernels.

    Raises:
        HloError: a loop of which the text does not tell how often it runs holds one.
    """
    return list(_kernels(module))


def _kernels(module: HloModule) -> Iterator[AttentionKernelCall]:
    for name in module.scheduled:
        for place, instruction in enumerate(module.computations[name]):
            kernel = (
                _KERNEL.match(instruction.name) if instruction.operation == "custom-call" else None
            )
            if kernel is None:
                continue
            operands = list(arrays(_layouts(instruction.line)))
            schedule = [
                shape for dtype, shape in operands if dtype in ("s8", "s32") and len(shape) > 2
            ]
            floats = [
                shape for dtype, shape in operands if dtype in ("bf16", "f32") and len(shape) > 2
            ]
            (*rows, heads, queries, head_dim), key = floats[0], floats[1]
            yield AttentionKernelCall(
                heads=heads,
                queries=queries,
                keys=key[-2],
                head_dim=head_dim,
                products=_KERNEL_PRODUCTS[kernel[1]],
                causal=bool(schedule),
                rows=math.prod(rows),
                times=module.run_count(name),
                computation=name,
                place=place,
            )


def _layouts(line: str) -> str:
    """Returns the operands' shapes as a kernel's call states them."""
    stated = re.search(r"operand_layout_constraints=\{(.*?\})\}", line)
    if stated is None:
        raise HloError(f"a kernel's call without its operands' shapes: {line[:200]}")
    return stated[1]


def _flops(module: HloModule, computation: str, instruction: HloInstruction) -> float:
    if instruction.operation == "dot":
        return _dot_flops(module, computation, instruction)
    if instruction.operation == "convolution":
        return _convolution_flops(module, computation, instruction)
    return 0.0


def _dot_flops(module: HloModule, computation: str, instruction: HloInstruction) -> float:
    result = _result_shape(instruction)
    left = module.shape(computation, instruction.operands[0])
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.line)
    axes = [int(axis) for axis in filter(None, contracted[1].split(","))] if contracted else []
    return 2.0 * math.prod(result) * math.prod(left[axis] for axis in axes)


def _result_shape(instruction: HloInstruction) -> list[int]:
    for _, shape in arrays(instruction.result):
        return shape
    raise HloError(f"a product without a result: {instruction.line[:200]}")


def _convolution_flops(module: HloModule, computation: str, instruction: HloInstruction) -> float:
    """Returns its operations; the TPU compiler writes products as convolutions, some with a window that hangs over the edge.

    Counted as XLA's `HloCostAnalysis::HandleConvolution` does: a product with padding is none.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.line)
    if labels is None:
        raise HloError(f"a convolution without its dimensions: {instruction.line[:200]}")
    left, right = (module.shape(computation, name) for name in instruction.operands[:2])
    result = _result_shape(instruction)
    window = _window(instruction.line)
    valid = 1
    for axis in range(len(labels[1]) - 2):
        size = left[labels[1].index(str(axis))]
        places, taps = result[labels[3].index(str(axis))], right[labels[2].index(str(axis))]
        stride, low, base, kernel = (
            window[name][axis] if axis < len(window[name]) else default
            for name, default in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
        )
        span = (size - 1) * base + 1
        valid *= sum(
            1
            for place in range(places)
            for tap in range(taps)
            if 0 <= (at := place * stride + tap * kernel - low) < span and at % base == 0
        )
    features, outputs = right[labels[2].index("i")], right[labels[2].index("o")]
    batch = result[labels[3].index("b")]
    groups = int(instruction.attribute("batch_group_count") or 1)
    return 2.0 * valid * batch * features * outputs / groups


def _window(line: str) -> dict[str, list[int]]:
    """Returns the sizes of a window by name and axis; of the padding, what is in front."""
    text = re.search(r"window=\{([^}]*)\}", line)
    stated = dict(re.findall(r"(\w+)=([\d_x\-]+)", text[1])) if text else {}
    window = {
        name: [int(size) for size in stated[name].split("x")] if name in stated else []
        for name in _WINDOW
    }
    return {
        **window,
        "pad": [int(pad.split("_")[0]) for pad in stated["pad"].split("x")]
        if "pad" in stated
        else [],
    }
