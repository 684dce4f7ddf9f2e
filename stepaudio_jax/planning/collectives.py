"""What a compiled program sends between chips, read from its optimised HLO.

XLA's own cost analysis counts the body of a loop once; here every computation is counted as often as it runs. How often a loop
runs is what the compiler writes beside it or, where it writes nothing, the constant that its condition compares a counter with.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64"), 8),
}


class HloError(ValueError):
    """The program's text is not what this reader knows."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: its operation, the text of its result's type, and the line."""

    operation: str
    result: str
    line: str


def collective_bytes(hlo: str) -> dict[str, float]:
    """Bytes that each chip sends in one run of a program, by kind of collective (kinds that do not occur are absent).

    For n chips in a group and a result (of a gather), an operand (of the others) of s bytes, a ring sends s (n - 1) / n for a
    gather, a scatter or an exchange, and twice that for a reduction whose result everyone gets; a permute sends s.

    Args:
        hlo: the text of an optimised module (`compiled.as_text()`).

    Raises:
        HloError: a loop of which the text does not tell how often it runs holds a collective.
    """
    computations = _computations(hlo)
    total: dict[str, float] = collections.defaultdict(float)
    for name, times in _runs(hlo, computations).items():
        for instruction in computations[name]:
            kind = instruction.operation.removesuffix("-start")
            if kind not in KINDS or instruction.operation.endswith("-done"):
                continue
            if times is None:
                raise HloError(f"a {kind} stands in a loop of unknown length: {instruction.line[:200]}")
            total[kind] += times * _sent(kind, instruction)
    return dict(total)


def _sent(kind: str, instruction: Instruction) -> float:
    group = _group_size(instruction.line)
    sizes = list(_sizes(instruction.result))
    share = (group - 1) / group
    if instruction.operation.endswith("-start"):  # (operands, results, ..)
        sizes = [max(sizes)] if kind != "reduce-scatter" else [min(size for size in sizes if size > 4)]
    size = sum(sizes)
    if kind == "collective-permute":
        return size
    if kind == "reduce-scatter":
        return size * (group - 1)  # the result is a group's share of the operand
    return size * share * (2 if kind == "all-reduce" else 1)


def _computations(hlo: str) -> dict[str, list[Instruction]]:
    computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    for line in hlo.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{", line)
        if header:
            current = computations.setdefault(header[1], [])
        elif line.rstrip() == "}":  # a kernel's attributes may begin a line with "}" too
            current = None
        elif current is not None:
            instruction = re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(", line)
            if instruction:
                current.append(Instruction(instruction[2], instruction[1], line))
    return computations


def _runs(hlo: str, computations: dict[str, list[Instruction]]) -> dict[str, int | None]:
    """How often each computation runs; None for those in a loop of unknown length."""
    entry = re.search(r"^ENTRY %?([\w.\-]+) ", hlo, re.M)
    if entry is None:
        raise HloError("the program has no entry computation")
    runs: dict[str, int | None] = dict.fromkeys(computations, 0)

    def visit(name: str, times: int | None) -> None:
        before = runs[name]
        runs[name] = None if times is None or before is None else before + times
        for instruction in computations[name]:
            for called, each in _calls(instruction, computations):
                if called in computations:
                    visit(called, None if times is None or each is None else times * each)

    visit(entry[1], 1)
    return runs


def _calls(instruction: Instruction, computations: dict[str, list[Instruction]]) -> Iterator[tuple[str, int | None]]:
    """The computations that an instruction runs, and how often."""
    times = _trip_count(instruction.line, computations) if instruction.operation == "while" else 1
    branches = r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)"
    for called in re.findall(r"(?:body|condition|calls|to_apply)=\{?%?([\w.\-]+)", instruction.line):
        yield called, times
    for listed, named in re.findall(branches, instruction.line):  # each as if it were taken: the program does not tell
        for called in re.findall(r"[\w.\-]+", listed or named):
            yield called, times


def _trip_count(loop: str, computations: dict[str, list[Instruction]]) -> int | None:
    """How often the body of a loop runs: a `jax.lax.scan` counts from 0 by 1 until its counter is not less than a constant."""
    stated = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop)
    if stated:
        return int(stated[1])
    named = re.search(r"condition=%?([\w.\-]+)", loop)
    condition = "\n".join(instruction.line for instruction in computations.get(named[1], ())) if named else ""
    compared = re.search(r"ROOT .* compare\(.*%([\w.\-]+)\), direction=LT", condition)
    constant = re.search(rf"%{re.escape(compared[1])} = \S+ constant\((\d+)\)", condition) if compared else None
    return int(constant[1]) if constant else None


def _group_size(line: str) -> int:
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota[2])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        sizes = {axis: int(size) for axis, size in re.findall(r"('\w+')=(\d+)", named[1])}
        return math.prod(sizes[axis] for axis in re.findall(r"'\w+'", named[2]))
    return 2  # a permute has pairs of chips


def _sizes(text: str) -> Iterator[int]:
    """Bytes of every array in the text of a type."""
    for dtype, dimensions in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", text):
        if dtype in _BYTES:
            size = _BYTES[dtype]
            for dimension in filter(None, dimensions.split(",")):
                size *= int(dimension)
            yield size
