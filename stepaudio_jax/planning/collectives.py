"""Reads from a program's optimised HLO what it sends between chips."""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from stepaudio_jax.errors import PlanError
from stepaudio_jax.planning.hlo import HloInstruction, HloModule, array_bytes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between chips, as often as its computation runs.

    Attributes:
        kind: one of `KINDS`.
        size: bytes of the result of a gather, of the operand of the others.
        group: the number of chips that take part.
        members: of one group, by their indices in the program's list of devices; None where the
            text does not say.
        times: how often it runs in one run of the program.
        computation: the computation in whose schedule it stands.
        first, last: indices in that schedule of its start and its end; equal where the program
            waits for it.
    """

    kind: str
    size: float
    group: int
    members: Sequence[int] | None
    times: int
    computation: str
    first: int
    last: int

    @property
    def sent(self) -> float:
        """Returns the bytes that each chip sends in one run of it."""
        return ring_bytes(self.kind, self.size, self.group)


def collective_bytes(hlo: str | HloModule) -> dict[str, float]:
    """Returns the bytes that each chip sends in one run of a program, by kind of collective.

    Kinds that do not occur are absent.

    Args:
        hlo: the text of an optimised module (`compiled.as_text()`), or the module.

    Raises:
        PlanError: a collective stands in a loop whose number of iterations the text does not give.
    """
    total: dict[str, float] = collections.defaultdict(float)
    for collective in find_collectives(HloModule(hlo) if isinstance(hlo, str) else hlo):
        total[collective.kind] += collective.times * collective.sent
    return dict(total)


def ring_bytes(kind: str, size: float, group: int) -> float:
    """Returns the bytes that each of a group's chips sends.

    For n chips in a group, a ring sends size (n - 1) / n for a gather, a scatter or an all-to-all,
    and twice that for a reduction whose result every chip gets; a permute sends its operand.

    Args:
        kind: one of `KINDS`.
        size: bytes of the result of a gather, of the operand of the others.
        group: the number of chips that take part.
    """
    if kind == "collective-permute":
        return size
    return size * (group - 1) / group * (2 if kind == "all-reduce" else 1)


def find_collectives(module: HloModule) -> list[Collective]:
    """Returns the collectives of a program, each once.

    XLA writes a collective that overlaps with computation several times: at its start, in each
    fusion that continues it, and at its end, all with one `channel_id` (and one `chain_id`, where
    XLA numbers chains). Those are one collective. Instructions that run by themselves are not
    merged: the collectives of `jax.shard_map` all have the same `channel_id`.

    Raises:
        PlanError: a collective stands in a loop whose number of iterations the text does not give.
    """
    collectives: list[Collective] = []
    for computation in module.scheduled:
        scheduled = _scheduled_collectives(module, computation)
        times = module.run_counts[computation]
        if times == 0 or not scheduled:
            continue
        if times is None:
            instruction = scheduled[0].instruction
            raise PlanError(
                f"a {_kind(instruction)} stands in a loop of unknown length: "
                f"{instruction.line[:200]}"
            )
        for first, last, instruction in scheduled:
            collectives.append(
                Collective(
                    kind=_kind(instruction) or "",
                    size=_size(instruction),
                    group=group_size(instruction.line),
                    members=first_group(instruction.line),
                    times=times,
                    computation=computation,
                    first=first,
                    last=last,
                )
            )
    return collectives


class _Scheduled(NamedTuple):
    """A collective's instruction, and the indices of its start and end in a schedule."""

    first: int
    last: int
    instruction: HloInstruction


def _scheduled_collectives(module: HloModule, computation: str) -> list[_Scheduled]:
    """Returns the collectives in the schedule of a computation, those in its fusions included."""
    instructions = module.computations[computation]
    separate: list[_Scheduled] = []
    chains: dict[tuple[str | None, ...], list[tuple[int, HloInstruction]]] = {}
    for index, instruction in enumerate(instructions):
        if _kind(instruction) is not None:
            separate.append(_Scheduled(index, _end(instructions, index), instruction))
        for _, part in module.fused_instructions(instruction):
            if (kind := _kind(part)) is None:
                continue
            channel = part.attribute("channel_id")
            if instruction.operation in ("async-start", "call-start") or channel is None:
                separate.append(_Scheduled(index, _end(instructions, index), part))
            else:
                chain = (kind, channel, part.attribute("chain_id"))
                chains.setdefault(chain, []).append((index, part))
    for (kind, channel, _), parts in chains.items():
        indices = [index for index, _ in parts]
        # The chain's start may stand in the schedule by itself.
        start = next(
            (entry for entry in separate if _is_in_chain(entry, kind, channel, parts[0][1])), None
        )
        if start is not None:
            separate.remove(start)
            indices += [start.first, start.last]
        separate.append(_Scheduled(min(indices), max(indices), parts[0][1]))
    return separate


def _is_in_chain(
    scheduled: _Scheduled, kind: str | None, channel: str | None, part: HloInstruction
) -> bool:
    """Returns whether an instruction is of a chain's kind and channel, and as large as its part."""
    instruction = scheduled.instruction
    if _kind(instruction) != kind or instruction.attribute("channel_id") != channel:
        return False
    return _size(instruction) == _size(part)


def _end(instructions: Sequence[HloInstruction], start: int) -> int:
    """Returns the index of the instruction that waits for an asynchronous one.

    That is the index `start` itself for an instruction that is not asynchronous.
    """
    if not instructions[start].operation.endswith("-start"):
        return start
    pending = {instructions[start].name}
    for index in range(start + 1, len(instructions)):
        instruction = instructions[index]
        if pending & set(instruction.operands):
            if instruction.operation.endswith("-done"):
                return index
            pending.add(instruction.name)  # an update, or an element of the tuple
    return start


def _kind(instruction: HloInstruction) -> str | None:
    """Returns the kind of a collective; None for other instructions."""
    kind = instruction.operation.removesuffix("-start")
    return kind if kind in KINDS else None


def _size(instruction: HloInstruction) -> float:
    """Returns the bytes of a gather's result, or of another collective's operand."""
    is_scatter = _kind(instruction) == "reduce-scatter"
    sizes = list(array_bytes(instruction.result))
    if instruction.operation.endswith("-start"):  # its result is (operands, results, ..)
        sizes = [min(size for size in sizes if size > 4)] if is_scatter else [max(sizes)]
    # The result of a scatter is one chip's part of the operand.
    return float(sum(sizes)) * (group_size(instruction.line) if is_scatter else 1)


def group_size(line: str) -> int:
    """Returns the number of devices in each of a collective's groups; 2 for a permute's pairs.

    Raises:
        PlanError: the line of the collective does not give its groups.
    """
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
    raise PlanError(f"a collective without its groups: {line[:200]}")


def first_group(line: str) -> Sequence[int] | None:
    """Returns the devices of a collective's first group.

    They are indices into the program's list of devices; None where the line does not give them.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return [int(device) for device in listed[1].split(",")]
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        shape = [int(size) for size in iota[3].split(",")]
        order = [int(axis) for axis in iota[4].split(",")] if iota[4] else list(range(len(shape)))
        return _first_indices(shape, order, int(iota[2]))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        axes = re.findall(r"('\w+')=(\d+)", named[1])
        grouped = re.findall(r"'\w+'", named[2])
        names = [axis for axis, _ in axes]
        if not set(grouped) <= set(names):
            return None
        others = [index for index, axis in enumerate(names) if axis not in grouped]
        order = [*others, *(names.index(axis) for axis in grouped)]
        return _first_indices([int(size) for _, size in axes], order, group_size(line))
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line)
    return [int(pairs[1]), int(pairs[2])] if pairs else None


def _first_indices(shape: Sequence[int], order: Sequence[int], count: int) -> list[int]:
    """Returns the first `count` elements of arange(prod(shape)).reshape(shape).transpose(order)."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    indices = [0]
    for axis in order:  # the last axis of the order varies fastest
        indices = [index + step * strides[axis] for index in indices for step in range(shape[axis])]
    return indices[:count]
