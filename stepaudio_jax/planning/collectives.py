"""What a compiled program sends between chips, read from its optimised HLO."""

import collections
import dataclasses
from collections.abc import Sequence

from stepaudio_jax.errors import PlanError
from stepaudio_jax.planning.hlo import HloInstruction, HloModule, first_group, group_size, sizes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between chips, as often as its computation runs.

    Attributes:
        kind: one of `KINDS`.
        size: bytes of the result of a gather, of the operand of the others.
        group: how many chips take part.
        members: of one group, by their places in the program's list of devices; None where the text
        does not tell.
        times: how often it runs in one run of the program.
        computation: in whose schedule it stands.
        first, last: places in that schedule of its start and its end; the same where the program
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
        """Bytes that each chip sends at a time."""
        return ring_bytes(self.kind, self.size, self.group)


def ring_bytes(kind: str, size: float, group: int) -> float:
    """Returns the bytes that each of a group's chips sends.

    For n chips in a group, a ring sends size (n - 1) / n for a gather, a scatter or an exchange,
    and twice that for a reduction whose result everyone gets; a permute sends its operand.

    Args:
        kind: one of `KINDS`.
        size: bytes of the result of a gather, of the operand of the others.
        group: how many chips take part.
    """
    if kind == "collective-permute":
        return size
    return size * (group - 1) / group * (2 if kind == "all-reduce" else 1)


def collective_bytes(hlo: str | HloModule) -> dict[str, float]:
    """Returns the bytes that each chip sends in one run of a program, by kind of collective.

    Kinds that do not occur are absent.

    Args:
        hlo: the text of an optimised module (`compiled.as_text()`), or what was read of it.

    Raises:
        PlanError: a loop of which the text does not tell how often it runs holds a collective.
    """
    total: dict[str, float] = collections.defaultdict(float)
    for collective in find_collectives(HloModule(hlo) if isinstance(hlo, str) else hlo):
        total[collective.kind] += collective.times * collective.sent
    return dict(total)


def find_collectives(module: HloModule) -> list[Collective]:
    """Returns the collectives of a program, each once.

    What XLA sends beside a computation is written several times: at its start, in each fusion that
    goes on with it, and at its end, all with one `channel_id` (and one `chain_id`, where XLA counts
    chains). Those are one collective. Instructions that
    run by themselves are not merged: collectives of `jax.shard_map` all have the same `channel_id`.

    Raises:
        PlanError: a loop of which the text does not tell how often it runs holds a collective.
    """
    found: list[Collective] = []
    for name in module.scheduled:
        instructions, times = module.computations[name], module.run_counts[name]
        chains: dict[tuple[str | None, ...], list[tuple[int, HloInstruction]]] = {}
        lone: list[tuple[int, int, HloInstruction]] = []
        for place, instruction in enumerate(instructions):
            if _kind(instruction) is not None:
                lone.append((place, _end(instructions, place), instruction))
            for _, part in module.fused_instructions(instruction):
                if (kind := _kind(part)) is None:
                    continue
                channel = part.attribute("channel_id")
                if instruction.operation in ("async-start", "call-start") or channel is None:
                    lone.append((place, _end(instructions, place), part))
                else:
                    chains.setdefault((kind, channel, part.attribute("chain_id")), []).append(
                        (place, part)
                    )
        for (kind, channel, _), parts in chains.items():
            places = [place for place, _ in parts]
            started = [
                entry for entry in lone if _is_of_chain(entry[2], kind, channel, parts[0][1])
            ]
            for entry in started[:1]:  # its start stands in the schedule by itself
                lone.remove(entry)
                places += entry[:2]
            lone.append((min(places), max(places), parts[0][1]))
        if times == 0 or not lone:
            continue
        if times is None:
            kind, line = _kind(lone[0][2]), lone[0][2].line
            raise PlanError(f"a {kind} stands in a loop of unknown length: {line[:200]}")
        found += [
            _collective(instruction, times, name, first, last) for first, last, instruction in lone
        ]
    return found


def _kind(instruction: HloInstruction) -> str | None:
    kind = instruction.operation.removesuffix("-start")
    return kind if kind in KINDS else None


def _end(instructions: Sequence[HloInstruction], place: int) -> int:
    """Returns where an asynchronous instruction of a schedule is waited for; its own place where the program waits at once."""
    if not instructions[place].operation.endswith("-start"):
        return place
    waiting = {instructions[place].name}
    for later in range(place + 1, len(instructions)):
        instruction = instructions[later]
        if waiting & set(instruction.operands):
            if instruction.operation.endswith("-done"):
                return later
            waiting.add(instruction.name)  # an update, or a piece of the tuple
    return place


def _is_of_chain(
    instruction: HloInstruction, kind: str | None, channel: str | None, part: HloInstruction
) -> bool:
    if _kind(instruction) != kind or instruction.attribute("channel_id") != channel:
        return False
    return _size(instruction) == _size(part)


def _size(instruction: HloInstruction) -> float:
    kind = _kind(instruction)
    results = list(sizes(instruction.result))
    if instruction.operation.endswith("-start"):  # (operands, results, ..)
        results = (
            [max(results)]
            if kind != "reduce-scatter"
            else [min(size for size in results if size > 4)]
        )
    size = float(sum(results))
    return (
        size * group_size(instruction.line) if kind == "reduce-scatter" else size
    )  # its result is a part of its operand


def _collective(
    instruction: HloInstruction, times: int, computation: str, first: int, last: int
) -> Collective:
    line = instruction.line
    return Collective(
        kind=_kind(instruction) or "",
        size=_size(instruction),
        group=group_size(line),
        members=first_group(line),
        times=times,
        computation=computation,
        first=first,
        last=last,
    )
