"""The text of a compiled program, read: its computations, how often each of them runs, and the sizes of arrays.

XLA's own cost analysis counts the body of a loop once; here every computation counts as often as it
runs. How often a loop runs is what the compiler writes beside it or, where it writes nothing, the
constant that its condition compares a counter with.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

from stepaudio_jax.errors import PlanError

_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64"), 8),
}
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")


@dataclasses.dataclass(frozen=True)
class HloInstruction:
    """One line of a computation: its name, its operation, the text of its result's type, and the line."""

    name: str
    operation: str
    result: str
    line: str

    @property
    def operands(self) -> list[str]:
        """Names of what it is applied to."""
        text = self.line.split(f" {self.operation}(", 1)[1]
        return re.findall(r"%([\w.\-]+)", text[: _closing(text)])

    def attribute(self, name: str) -> str | None:
        """Returns the text of a plain attribute, such as `channel_id`; None where there is none."""
        found = re.search(rf"\b{name}=\"?([\w.\-]+)", self.line)
        return found[1] if found else None


class HloModule:
    """A compiled program.

    Args:
        text: of an optimised module (`compiled.as_text()`).

    Attributes:
        computations: name -> its instructions, in the order in which they run.
        entry: the name of the computation that the program is.

    Raises:
        PlanError: the text has no entry computation.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[HloInstruction]] = {}
        self.entry = ""
        current: list[HloInstruction] | None = None
        for line in text.splitlines():
            header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{", line)
            if header:
                current = self.computations.setdefault(header[2], [])
                self.entry = header[2] if header[1] else self.entry
            elif line.rstrip() == "}":  # a kernel's attributes may begin a line with "}" too
                current = None
            elif current is not None and (parts := _INSTRUCTION.match(line)):
                current.append(HloInstruction(parts[1], parts[3], parts[2], line))
        if not self.entry:
            raise PlanError("the program has no entry computation")

    @functools.cached_property
    def run_counts(self) -> dict[str, int | None]:
        """Returns how often each computation runs; None for those in a loop of unknown length."""
        runs: dict[str, int | None] = dict.fromkeys(self.computations, 0)

        def visit(name: str, times: int | None) -> None:
            before = runs[name]
            runs[name] = None if times is None or before is None else before + times
            for instruction in self.computations[name]:
                for called, each in self.calls(instruction):
                    visit(called, None if times is None or each is None else times * each)

        visit(self.entry, 1)
        return runs

    @functools.cached_property
    def scheduled(self) -> list[str]:
        """Computations that run by themselves, instruction after instruction; the others are parts of one instruction."""
        fused = set()
        for instructions in self.computations.values():
            for instruction in instructions:
                if instruction.operation not in ("while", "conditional", "call"):
                    fused |= {called for called, _ in self.calls(instruction)}
        return [name for name in self.computations if name not in fused]

    def run_count(self, computation: str) -> int:
        """Returns how often a computation runs.

        Raises:
            PlanError: the text does not tell, for it stands in a loop of unknown length.
        """
        times = self.run_counts[computation]
        if times is None:
            raise PlanError(f"computation {computation} stands in a loop of unknown length")
        return times

    def calls(self, instruction: HloInstruction) -> Iterator[tuple[str, int | None]]:
        """Yields the computations that an instruction runs, and how often.

        The end of an asynchronous operation names the computation that its start has run.
        """
        if instruction.operation in ("async-update", "async-done"):
            return
        times = self._trip_count(instruction.line) if instruction.operation == "while" else 1
        branches = r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)"
        names = re.findall(r"\b(?:body|condition|calls|to_apply)=\{?%?([\w.\-]+)", instruction.line)
        for listed, named in re.findall(
            branches, instruction.line
        ):  # each as if it were taken: the program does not tell
            names += re.findall(r"[\w.\-]+", listed or named)
        for called in names:
            if called in self.computations:
                yield called, times

    def fused_instructions(
        self, instruction: HloInstruction
    ) -> Iterator[tuple[str, HloInstruction]]:
        """Yields an instruction's parts, (computation, part), those of a fusion's fusions included; loops are not entered."""
        if instruction.operation in ("while", "conditional", "call"):
            return
        for called, _ in self.calls(instruction):
            for part in self.computations[called]:
                yield called, part
                yield from self.fused_instructions(part)

    def shape(self, computation: str, name: str) -> list[int]:
        """Returns the shape of the first array that an instruction of a computation gives."""
        arrays = self._shapes(computation)
        if name not in arrays:
            raise PlanError(f"computation {computation} has no {name}")
        return arrays[name]

    @functools.cache  # noqa: B019  # a module lives as long as its plan is made
    def _shapes(self, computation: str) -> dict[str, list[int]]:
        shapes = {}
        for instruction in self.computations[computation]:
            first = next(iter(arrays(instruction.result)), None)
            if first is not None:
                shapes[instruction.name] = first[1]
        return shapes

    def _trip_count(self, loop: str) -> int | None:
        """Returns how often the body of a loop runs.

        A `jax.lax.scan` counts from 0 by 1 until its counter is not less than a constant; loops
        that the compiler makes of a product and its collective count by 2.
        """
        stated = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop)
        if stated:
            return int(stated[1])
        named = re.search(r"condition=%?([\w.\-]+)", loop)
        condition = (
            {part.name: part for part in self.computations.get(named[1], ())} if named else {}
        )
        compared = next(
            (
                part
                for part in condition.values()
                if "direction=LT" in part.line and "ROOT" in part.line
            ),
            None,
        )
        if compared is None:
            return None
        counter, limit = compared.operands
        until = _constant(condition.get(limit))
        return (
            None if until is None else math.ceil(until / self._step(loop, condition.get(counter)))
        )

    def _step(self, loop: str, counter: HloInstruction | None) -> int:
        """Returns by how much a loop counts: 1 where its body does not show it."""
        body = re.search(r"body=%?([\w.\-]+)", loop)
        parts = {part.name: part for part in self.computations.get(body[1], ())} if body else {}
        index = counter.attribute("index") if counter is not None else None
        result = next(
            (part for part in parts.values() if "ROOT" in part.line and part.operation == "tuple"),
            None,
        )
        if result is None or index is None or int(index) >= len(result.operands):
            return 1
        part, step = parts.get(result.operands[int(index)]), 0
        while part is not None and part.operation in ("add", "copy", "bitcast"):
            operands = [parts.get(name) for name in part.operands]
            step += sum(_constant(operand) or 0 for operand in operands)
            part = next(
                (
                    operand
                    for operand in operands
                    if operand is not None and _constant(operand) is None
                ),
                None,
            )
        return step if step > 0 and part is not None and part.attribute("index") == index else 1


def _constant(instruction: HloInstruction | None) -> int | None:
    """Returns the value of a constant; None of anything else."""
    value = re.search(r" constant\((\d+)\)", instruction.line) if instruction is not None else None
    return int(value[1]) if value else None


def arrays(text: str) -> Iterator[tuple[str, list[int]]]:
    """Yields every array in the text of a type: its dtype's name and its shape."""
    for dtype, dimensions in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", text):
        if dtype in _BYTES:
            yield dtype, [int(dimension) for dimension in filter(None, dimensions.split(","))]


def sizes(text: str) -> Iterator[int]:
    """Yields the bytes of every array in the text of a type."""
    for dtype, shape in arrays(text):
        yield _BYTES[dtype] * math.prod(shape)


def first_group(line: str) -> Sequence[int] | None:
    """Returns the devices of a collective's first group, by their places in the program's list of devices.

    None where the text does not tell them (see `group_size`).
    """
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return [int(device) for device in listed[1].split(",")]
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        dimensions = [int(size) for size in iota[3].split(",")]
        order = (
            [int(axis) for axis in iota[4].split(",")] if iota[4] else list(range(len(dimensions)))
        )
        return _first_members(dimensions, order, int(iota[2]))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        axes = re.findall(r"('\w+')=(\d+)", named[1])
        grouped = re.findall(r"'\w+'", named[2])
        names = [axis for axis, _ in axes]
        if not set(grouped) <= set(names):
            return None
        order = [place for place, axis in enumerate(names) if axis not in grouped] + [
            names.index(axis) for axis in grouped
        ]
        return _first_members([int(size) for _, size in axes], order, group_size(line))
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line)
    return [int(pairs[1]), int(pairs[2])] if pairs else None


def group_size(line: str) -> int:
    """Returns how many devices take part in one of a collective's groups; a permute has pairs of them."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota[2])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        axes = {axis: int(size) for axis, size in re.findall(r"('\w+')=(\d+)", named[1])}
        return math.prod(axes[axis] for axis in re.findall(r"'\w+'", named[2]))
    if "source_target_pairs=" in line:
        return 2
    raise PlanError(f"a collective whose groups are not told: {line[:200]}")


def _first_members(dimensions: Sequence[int], order: Sequence[int], count: int) -> list[int]:
    """Returns the first `count` of the numbers 0, 1, .. in an array of those dimensions, transposed to that order of axes."""
    strides = [math.prod(dimensions[axis + 1 :]) for axis in range(len(dimensions))]
    members = [0]
    for axis in order:  # the last of the order varies fastest
        members = [
            member + step * strides[axis] for member in members for step in range(dimensions[axis])
        ]
    return members[:count]


def _closing(text: str) -> int:
    """Returns where the bracket closes that was opened before the text."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return place
    return len(text)
