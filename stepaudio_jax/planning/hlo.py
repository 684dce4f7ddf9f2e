"""Parses the text of a compiled program: its computations and how often each of them runs.

XLA's own cost analysis counts the body of a loop once; here every computation counts as often as it
runs. The number of a loop's iterations is what the compiler states beside it or, where it states
nothing, the constant that the loop's condition compares a counter with.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

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
    """An instruction of a computation.

    Attributes:
        name: of its result.
        operation: such as "dot" or "fusion".
        result: the text of its result's type.
        line: its whole line.
    """

    name: str
    operation: str
    result: str
    line: str

    @property
    def operands(self) -> list[str]:
        """Returns the names of the operands."""
        text = self.line.split(f" {self.operation}(", 1)[1]
        return re.findall(r"%([\w.\-]+)", text[: _closing_bracket(text)])

    def attribute(self, name: str) -> str | None:
        """Returns the text of a plain attribute, such as `channel_id`; None where there is none."""
        match = re.search(rf"\b{name}=\"?([\w.\-]+)", self.line)
        return match[1] if match else None


class HloModule:
    """A compiled program.

    Args:
        text: of an optimised module (`compiled.as_text()`).

    Attributes:
        computations: name -> its instructions, in the order in which they run.
        entry: the name of the program's outermost computation.

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
        counts: dict[str, int | None] = dict.fromkeys(self.computations, 0)

        def add_runs(name: str, times: int | None) -> None:
            count = counts[name]
            counts[name] = None if times is None or count is None else count + times
            for instruction in self.computations[name]:
                for callee, per_run in self.calls(instruction):
                    add_runs(callee, None if times is None or per_run is None else times * per_run)

        add_runs(self.entry, 1)
        return counts

    @functools.cached_property
    def scheduled(self) -> list[str]:
        """Returns the computations that have a schedule of their own.

        The others are parts of a single instruction of another computation, such as a fusion.
        """
        fused = set()
        for instructions in self.computations.values():
            for instruction in instructions:
                if instruction.operation not in ("while", "conditional", "call"):
                    fused |= {callee for callee, _ in self.calls(instruction)}
        return [name for name in self.computations if name not in fused]

    def run_count(self, computation: str) -> int:
        """Returns how often a computation runs.

        Raises:
            PlanError: it stands in a loop of unknown length.
        """
        times = self.run_counts[computation]
        if times is None:
            raise PlanError(f"computation {computation} stands in a loop of unknown length")
        return times

    def calls(self, instruction: HloInstruction) -> Iterator[tuple[str, int | None]]:
        """Yields the computations that an instruction runs, and how often.

        Every branch of a conditional counts as taken. The end of an asynchronous operation runs
        none: it names the computation that its start has run.
        """
        if instruction.operation in ("async-update", "async-done"):
            return
        times = self._trip_count(instruction.line) if instruction.operation == "while" else 1
        callees = re.findall(
            r"\b(?:body|condition|calls|to_apply)=\{?%?([\w.\-]+)", instruction.line
        )
        branches = r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)"
        for listed, named in re.findall(branches, instruction.line):
            callees += re.findall(r"[\w.\-]+", listed or named)
        for callee in callees:
            if callee in self.computations:
                yield callee, times

    def fused_instructions(
        self, instruction: HloInstruction
    ) -> Iterator[tuple[str, HloInstruction]]:
        """Yields the parts of an instruction as (computation, part).

        Those of a fusion inside of a fusion are included; loops are not entered.
        """
        if instruction.operation in ("while", "conditional", "call"):
            return
        for callee, _ in self.calls(instruction):
            for part in self.computations[callee]:
                yield callee, part
                yield from self.fused_instructions(part)

    def shape(self, computation: str, name: str) -> list[int]:
        """Returns the shape of the first array in the result of a computation's instruction.

        Raises:
            PlanError: the computation has no array of that name.
        """
        shapes = self._shapes(computation)
        if name not in shapes:
            raise PlanError(f"computation {computation} has no {name}")
        return shapes[name]

    @functools.cache  # noqa: B019  # a module lives as long as its plan is made
    def _shapes(self, computation: str) -> dict[str, list[int]]:
        shapes = {}
        for instruction in self.computations[computation]:
            first_array = next(iter(arrays(instruction.result)), None)
            if first_array is not None:
                shapes[instruction.name] = first_array[1]
        return shapes

    def _trip_count(self, loop: str) -> int | None:
        """Returns how often the body of a loop runs; None where the text does not show it.

        A `jax.lax.scan` counts from 0 by 1 while its counter is less than a constant; loops that
        the compiler makes of a product and its collective count by 2.
        """
        stated = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop)
        if stated:
            return int(stated[1])
        condition = self._called_by(loop, "condition")
        comparison = next(
            (
                instruction
                for instruction in condition.values()
                if "direction=LT" in instruction.line and "ROOT" in instruction.line
            ),
            None,
        )
        if comparison is None:
            return None
        counter, limit = comparison.operands
        iterations = _constant(condition.get(limit))
        if iterations is None:
            return None
        return math.ceil(iterations / self._increment(loop, condition.get(counter)))

    def _increment(self, loop: str, counter: HloInstruction | None) -> int:
        """Returns by how much a loop increments its counter: 1 where its body does not show it."""
        body = self._called_by(loop, "body")
        index = counter.attribute("index") if counter is not None else None
        result = next(
            (
                instruction
                for instruction in body.values()
                if "ROOT" in instruction.line and instruction.operation == "tuple"
            ),
            None,
        )
        if result is None or index is None or int(index) >= len(result.operands):
            return 1
        # From the counter's new value back to its old one, adding up the constants on the way.
        value, increment = body.get(result.operands[int(index)]), 0
        while value is not None and value.operation in ("add", "copy", "bitcast"):
            operands = [body.get(name) for name in value.operands]
            increment += sum(_constant(operand) or 0 for operand in operands)
            value = next(
                (
                    operand
                    for operand in operands
                    if operand is not None and _constant(operand) is None
                ),
                None,
            )
        is_old_value = value is not None and value.attribute("index") == index
        return increment if increment > 0 and is_old_value else 1

    def _called_by(self, loop: str, attribute: str) -> dict[str, HloInstruction]:
        """Returns the instructions of a loop's body or condition by name."""
        computation = re.search(rf"{attribute}=%?([\w.\-]+)", loop)
        instructions = self.computations.get(computation[1], ()) if computation else ()
        return {instruction.name: instruction for instruction in instructions}


def _constant(instruction: HloInstruction | None) -> int | None:
    """Returns the value of a constant; None for any other instruction."""
    value = re.search(r" constant\((\d+)\)", instruction.line) if instruction is not None else None
    return int(value[1]) if value else None


def arrays(text: str) -> Iterator[tuple[str, list[int]]]:
    """Yields every array in the text of a type: its dtype's name and its shape."""
    for dtype, dimensions in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", text):
        if dtype in _BYTES:
            yield dtype, [int(dimension) for dimension in filter(None, dimensions.split(","))]


def array_bytes(text: str) -> Iterator[int]:
    """Yields the bytes of every array in the text of a type."""
    for dtype, shape in arrays(text):
        yield _BYTES[dtype] * math.prod(shape)


def _closing_bracket(text: str) -> int:
    """Returns the index of the bracket that closes the one opened before the text."""
    depth = 1
    for index, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return index
    return len(text)
