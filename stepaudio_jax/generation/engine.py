"""The engine: continuous batching on the host, over the device's slots.

Requests wait in a queue. Whenever a slot is free, the next one's prompt is read and put into it; all slots then decode
together, a few tokens a call. Programs are compiled for buckets of prompt lengths and of audio chunks, so their number does not
grow with the requests.
"""

import collections
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh

from stepaudio_jax.config import ComputeConfig, ModelConfig
from stepaudio_jax.generation import slots as device
from stepaudio_jax.generation.error import GenerationError
from stepaudio_jax.generation.layout import on_mesh, weight_shardings
from stepaudio_jax.generation.listening import Listener
from stepaudio_jax.generation.prompt import Prompt, bucket, require_fit
from stepaudio_jax.generation.sampling import MOST_STOP_TOKENS, Sampling, SamplingArrays
from stepaudio_jax.generation.writing import End, Written
from stepaudio_jax.models import (
    CacheDtype,
    Parameters,
    is_quantized,
    lora_matrices,
    quantized_shardings,
    replace_lora,
    unstack,
)
from stepaudio_jax.parallel import row_parts
from stepaudio_jax.text import THINK_END, Tokenizer

FinishReason = Literal["stop", "length", "repetition", "cancelled"]
_REASONING_OPENS = b"<think>\n"  # how a prompt ends that `render_prompt` makes; another template may leave the line break out


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was generated: tokens (the stop token not among them), and why it ended.

    `logprobs` are those of the model's own distribution, `sampling_logprobs` of the one that was drawn from: tempered,
    restricted and penalised as asked. `finish_reason` is "stop" (a stop token or a stop string), "length", "repetition" (it had
    fallen into a loop) or "cancelled"; `end` is the stop token, where one has ended it, and `surplus` the bytes at the end of
    the last token that belong to a stop string.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    sampling_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    end: End | None = None
    surplus: int = 0


@dataclasses.dataclass(frozen=True)
class Progress:
    """News of a request: text that was added (whole characters), and at the end its completion."""

    request: int
    text: str
    completion: Completion | None = None


@dataclasses.dataclass
class _Group:
    """Requests that share a prompt and have not all been given a slot."""

    prompt: Prompt
    waiting: "collections.deque[Written]"
    prefix: device.Prefix | None = None


class Engine:
    """Answers prompts with one model.

    Args:
        config: the model's shape.
        parameters: its tree, or what `models.quantize_weights` makes of it; adapters may be beside the decoder's kernels
            (`models.with_low_rank`), and stay there.
        tokenizer: of the model.
        compute: how it is computed.
        slots: requests answered side by side.
        slot_tokens: that a slot holds, prompt and reply; at most the model's positions, which are the default.
        cache_dtype: of keys and values; by default that of the computation.
        steps: tokens a call to the device adds to each slot, at most: more make streaming coarser and the host's share smaller.
        mesh: where weights and slots lie, by `compute.rules`; None for one device. Weights that lie elsewhere, as a training
            state's do, are sent from device to device. In a run of several processes each makes the same calls.
        free: give up the decoder's parameters as the engine's own copy is made, layer by layer.

    Raises:
        GenerationError: slots, slot_tokens or steps are out of range, or the slots cannot be shared out evenly.
        ShardingError: the rules cannot place a parameter on the mesh.
    """

    def __init__(
        self,
        config: ModelConfig,
        parameters: Parameters,
        tokenizer: Tokenizer,
        *,
        compute: ComputeConfig,
        slots: int,
        slot_tokens: int | None = None,
        cache_dtype: CacheDtype | None = None,
        steps: int = 16,
        mesh: Mesh | None = None,
        free: bool = False,
    ):
        limit = config.decoder.max_positions
        self._slot_tokens = limit if slot_tokens is None else slot_tokens
        if slots <= 0 or steps <= 0:
            raise GenerationError(f"slots={slots} and steps={steps} must be positive")
        if not 0 < self._slot_tokens <= limit:
            raise GenerationError(f"slot_tokens={slot_tokens} must lie between 1 and the model's {limit} positions")
        self._program = device.Program(config, dataclasses.replace(compute, remat="none"), cache_dtype or compute.dtype)
        self._mesh = mesh
        if mesh is not None and slots % (parts := row_parts(compute.rules, mesh)):
            raise GenerationError(f"slots={slots} cannot be shared out over the {parts} parts of the mesh; take a multiple")
        self._parameters = self._placed(parameters, free=free)
        self._tokenizer = tokenizer
        self._closing = np.asarray(tokenizer.encode(THINK_END), np.int32)
        self._steps = steps
        with on_mesh(self._mesh):
            self._slots = device.empty_slots(self._program, slots, self._slot_tokens)
        self._listener = Listener(self._program)
        self._occupants: list[Written | None] = [None] * slots
        self._queue: collections.deque[_Group] = collections.deque()
        self._ended: list[Progress] = []  # cancelled before they had a slot
        self._numbers = itertools.count()
        self._shapes: set[str] = set()
        self._written, self._seconds = 0, 0.0

    @property
    def programs(self) -> tuple[str, ...]:
        """What was compiled for this engine: a name and the bucket of each program."""
        return tuple(sorted(self._shapes | self._listener.shapes))

    @property
    def waiting(self) -> int:
        """Requests that have no slot yet."""
        return sum(len(group.waiting) for group in self._queue)

    @property
    def tokens_per_second(self) -> float:
        """That were written since the engine was made, while it had something to do."""
        return self._written / self._seconds if self._seconds else 0.0

    @property
    def free_slots(self) -> int:
        """Slots that no request occupies."""
        return self._occupants.count(None)

    @property
    def busy(self) -> bool:
        """Whether any request waits or is being answered."""
        return bool(self._queue or self._ended) or self.free_slots < len(self._occupants)

    def has_room(self, prompt: Prompt, samplings: Sequence[Sampling]) -> bool:
        """Whether a slot is long enough for a prompt and what may follow it."""
        return prompt.length + max(sampling.max_new_tokens for sampling in samplings) <= self._slot_tokens

    def set_parameters(self, parameters: Parameters, *, free: bool = False, same_kernels: bool = False) -> None:
        """Answers with other weights of the same shape from now on, those of a training state for example.

        Args:
            parameters: the tree, as the engine was made with.
            free: give up the decoder's as the engine's own copy is made.
            same_kernels: of the decoder's layers only the adapters beside the kernels are others: nothing else is copied.

        Raises:
            GenerationError: requests are being answered, which began with the old ones.
        """
        if self.busy:
            raise GenerationError("the weights cannot change while requests are being answered; run them to their end first")
        held = self._parameters["decoder"]["layers"] if same_kernels else ()
        self._parameters = {}  # the old ones go before the new ones come
        if same_kernels:
            self._parameters = self._with_adapters_of(parameters, held)
        else:
            self._parameters = self._placed(parameters, free=free)

    def _with_adapters_of(self, parameters: Parameters, held: tuple[Parameters, ...]) -> Parameters:
        """Returns the engine's layers `held` with the adapters of other parameters, which give the rest of the model."""
        decoder = dict(parameters["decoder"])
        adapters = self._cast(lora_matrices(decoder.pop("layers")))
        rest: Parameters = {**parameters, "decoder": self._cast(decoder)}
        if self._mesh is not None:
            shardings = weight_shardings(self._program.config, self._program.compute, self._mesh)
            shardings = {**shardings, "decoder": {name: shardings["decoder"][name] for name in decoder}}
            rest = jax.device_put(rest, shardings)
        layers = held
        if adapters:
            apart = unstack({"decoder": {"layers": adapters}})["decoder"]["layers"]
            places = jax.tree.map(lambda leaf: leaf.sharding, tuple(lora_matrices(layer) for layer in held))
            apart = jax.device_put(apart, places)
            layers = tuple(replace_lora(layer, lora) for layer, lora in zip(held, apart, strict=True))
        return {**rest, "decoder": {**rest["decoder"], "layers": layers}}

    def submit(self, prompt: Prompt, samplings: Sequence[Sampling]) -> list[int]:
        """Puts a prompt into the queue, to be answered once for each of `samplings`; it is read once for all of them.

        Returns:
            The number of each request.

        Raises:
            GenerationError: the prompt is empty, or it and its new tokens do not fit a slot.
        """
        if not prompt.length:
            raise GenerationError("the prompt is empty; it needs at least one token")
        for sampling in samplings:
            require_fit(prompt, self._program.config, new_tokens=sampling.max_new_tokens, slot_tokens=self._slot_tokens)
        in_reasoning = self._opens_reasoning(prompt)
        requests = [
            Written(next(self._numbers), sampling, self._tokenizer, in_reasoning=in_reasoning) for sampling in samplings
        ]
        self._queue.append(_Group(prompt, collections.deque(requests)))
        return [request.number for request in requests]

    def cancel(self, request: int) -> None:
        """Gives a request up; its completion holds what was written. One that has ended, or never was, is left alone."""
        for slot, occupant in enumerate(self._occupants):
            if occupant is not None and occupant.number == request:
                self._free(slot)
                self._ended.append(_progress(occupant, "cancelled"))
                return
        for group in self._queue:
            for waiting in group.waiting:
                if waiting.number == request:
                    group.waiting.remove(waiting)
                    self._ended.append(_progress(waiting, "cancelled"))
                    return

    def step(self) -> list[Progress]:
        """Fills free slots from the queue, decodes once, and tells what is new."""
        with on_mesh(self._mesh):
            return self._step()

    def _step(self) -> list[Progress]:
        started = time.perf_counter()
        news, self._ended = self._ended, []
        admitted = self._admit()
        running = [slot for slot, occupant in enumerate(self._occupants) if occupant is not None]
        if not running:
            return news
        self._shapes.add(f"decode {len(self._occupants)} x {self._steps}")
        self._slots, decoded = device.decode(
            self._program, self._parameters, self._slots, self._closing, bool(self._queue), self._steps
        )
        firsts, decoded = jax.device_get((admitted, decoded))
        for slot in running:
            occupant = self._occupants[slot]
            assert occupant is not None
            if slot in firsts:
                first = firsts[slot]
                occupant.add(first.token, first.logprob, first.sampling_logprob)
            new = slice(0, int(decoded.count[slot]))
            occupant.add(decoded.tokens[slot, new], decoded.logprobs[slot, new], decoded.sampling_logprobs[slot, new])
            news += self._look_at(slot, occupant, running=bool(decoded.running[slot]))
        self._written += len(firsts) + int(decoded.count.sum())
        self._seconds += time.perf_counter() - started
        return news

    def run(self) -> Iterator[Progress]:
        """Steps until nothing waits and nothing runs."""
        while self.busy:
            yield from self.step()

    def generate(self, prompts: Sequence[Prompt], samplings: Sequence[Sampling]) -> Iterator[tuple[int, Completion]]:
        """Answers every prompt; yields (index of the prompt, completion) as each ends.

        Raises:
            GenerationError: a prompt and its new tokens do not fit a slot; nothing has been computed then.
        """
        places: dict[int, int] = {}
        for index, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            try:
                require_fit(prompt, self._program.config, new_tokens=sampling.max_new_tokens, slot_tokens=self._slot_tokens)
            except GenerationError as error:
                raise GenerationError(f"prompt {index}: {error}") from None
        for index, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            places[self.submit(prompt, [sampling])[0]] = index
        for news in self.run():
            if news.completion is not None and news.request in places:
                yield places[news.request], news.completion

    def _admit(self) -> dict[int, device.Draw]:
        """Gives free slots to the requests at the head of the queue; returns the first token of each, by slot."""
        firsts = {}
        while self._queue and None in self._occupants:
            group = self._queue[0]
            if not group.waiting:
                self._queue.popleft()
                continue
            if group.prefix is None:
                group.prefix = self._read(group.prompt)
            request, slot = group.waiting.popleft(), self._occupants.index(None)
            sampling = request.sampling
            admission = device.Admission(
                limit=np.array([sampling.max_new_tokens], np.int32),
                pause=np.array([sampling.max_reasoning_tokens or 0], np.int32),
                stops=self._stops(sampling),
                settings=SamplingArrays.of([sampling]),
            )
            self._slots, firsts[slot] = device.insert(self._program, self._slots, group.prefix, admission, slot)
            self._occupants[slot] = request
        while self._queue and not self._queue[0].waiting:
            self._queue.popleft()
        return firsts

    def _read(self, prompt: Prompt) -> device.Prefix:
        """Prefills a prompt, padded to its bucket."""
        size = min(bucket(prompt.length), self._slot_tokens)
        tokens, is_audio = np.zeros(size, np.int32), np.zeros(size, bool)
        tokens[: prompt.length], is_audio[: prompt.length] = prompt.tokens, prompt.is_audio
        width = self._program.config.decoder.hidden
        audio = np.zeros((0, width), np.float32)
        if prompt.chunks:
            audio = np.zeros((size, width), np.float32)
            heard = self._listener.hear(self._parameters, prompt) if prompt.heard is None else prompt.heard
            audio[is_audio] = heard
        self._shapes.add(f"prefill {size}{' with sound' if prompt.chunks else ''}")
        self._shapes.add(f"insert {size}")
        return device.prefill(self._program, self._parameters, tokens, np.int32(prompt.length), audio, is_audio)

    def _opens_reasoning(self, prompt: Prompt) -> bool:
        """Returns whether a prompt ends in the start of a reasoning, which the model then goes on with."""
        last = prompt.tokens[-len(_REASONING_OPENS) :].tolist()
        return b"".join(map(self._tokenizer.token_bytes, last)).rstrip().endswith(_REASONING_OPENS.rstrip())

    def _stops(self, sampling: Sampling) -> np.ndarray:
        tokens = (self._tokenizer.special.eot, *sampling.stop_tokens)
        return np.array([[*tokens, *[device.NO_TOKEN] * (MOST_STOP_TOKENS - len(tokens))]], np.int32)

    def _look_at(self, slot: int, occupant: Written, *, running: bool) -> list[Progress]:
        """What is new of a slot; frees it where its request has ended, and lets it go on where it only paused."""
        if occupant.stopped:
            reason: FinishReason = "stop"
        elif occupant.repeated:
            reason = "repetition"
        elif occupant.at_limit:
            reason = "length"
        else:
            if not running:  # it paused: its reasoning has had its tokens
                forced = 0 if occupant.reasoning_ended else len(self._closing)
                self._slots = device.resume(self._program, self._slots, slot, forced)
            text = occupant.take_text()
            return [Progress(occupant.number, text)] if text else []
        self._free(slot)
        return [_progress(occupant, reason)]

    def _free(self, slot: int) -> None:
        with on_mesh(self._mesh):
            self._slots = device.release(self._program, self._slots, slot)
        self._occupants[slot] = None

    def _placed(self, parameters: Parameters, *, free: bool) -> Parameters:
        """Weights in the engine's layout, where it computes."""
        dtype = self._program.compute.dtype
        layers = jax.tree.leaves(parameters["decoder"]["layers"], is_leaf=is_quantized)
        own = free or not any(is_quantized(leaf) or leaf.dtype == dtype for leaf in layers)  # casting them makes others
        apart = unstack({**parameters, "decoder": self._cast(parameters["decoder"])}, free=own)
        shardings = None
        if self._mesh is not None:
            plain = weight_shardings(self._program.config, self._program.compute, self._mesh)
            shardings = quantized_shardings(apart, plain)
        placed: Parameters = jax.device_put(apart, shardings)
        return placed

    def _cast(self, tree: Parameters) -> Parameters:
        """Casts a tree to the dtype of the computation, once and not for every token; matrices in int8 stay as they are."""
        dtype = self._program.compute.dtype
        cast: Parameters = jax.tree.map(
            lambda leaf: leaf if is_quantized(leaf) else leaf.astype(dtype), tree, is_leaf=is_quantized
        )
        return cast


def _progress(request: Written, reason: FinishReason) -> Progress:
    tokens, logprobs, sampling_logprobs = request.kept()
    completion = Completion(tokens, logprobs, sampling_logprobs, reason, request.end, request.surplus)
    return Progress(request.number, request.take_text(last=True), completion)
