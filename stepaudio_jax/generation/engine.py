"""The engine: continuous batching on the host, over the device's slots.

Requests wait in a queue. Whenever a slot is free, the next one's prompt is read and put into it;
all slots then decode together, a few tokens a call. Programs are compiled for buckets of prompt
lengths and of audio chunks, so their number does not grow with the requests.
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
from numpy.typing import NDArray

from stepaudio_jax.audio.lengths import max_mel_frames
from stepaudio_jax.config import ComputeConfig, ModelConfig
from stepaudio_jax.errors import GenerationError
from stepaudio_jax.generation import slots as device
from stepaudio_jax.generation.prompts import Prompt, bucket, check_prompt_fits
from stepaudio_jax.generation.requests import RequestState, StopToken
from stepaudio_jax.generation.sampling import MAX_STOP_TOKENS, Sampling, SamplingArrays
from stepaudio_jax.generation.shardings import on_mesh, weight_shardings
from stepaudio_jax.models import (
    CacheDtype,
    Parameters,
    extract_lora,
    is_quantized,
    quantized_shardings,
    replace_lora,
    unstack_layers,
)
from stepaudio_jax.parallel import num_batch_shards
from stepaudio_jax.text import THINK_END, Tokenizer

# Hearing a prompt's chunks: the encoder's own buckets, so that sound compiles few programs whatever the prompts.

_MAX_CHUNKS = 8  # heard at once


class AudioEncoder:
    """Runs encoder and adaptor.

    Attributes:
        shapes: of the programs that it has needed.
    """

    def __init__(self, program: device.EngineSpec):
        self._program = program
        self.shapes: set[str] = set()

    def encode(self, parameters: Parameters, prompt: Prompt) -> NDArray[np.float32]:
        """The adaptor's outputs of all chunks, end to end: [audio tokens of the prompt, H] f32, on the host.

        Chunks of one bucket of lengths are heard together, in groups of 1, 2, 4 or 8.
        """
        longest = max_mel_frames(self._program.config.encoder.positions)
        sizes = [min(bucket(chunk.shape[1]), longest) for chunk in prompt.chunks]
        outputs: dict[int, NDArray[np.float32]] = {}
        for size in sorted(set(sizes)):
            places = [place for place, of_chunk in enumerate(sizes) if of_chunk == size]
            while places:
                count = min(1 << (len(places) - 1).bit_length(), _MAX_CHUNKS)
                together, places = places[:count], places[count:]
                mel = np.zeros((count, self._program.config.encoder.mel_bins, size), np.float32)
                lengths = np.zeros(count, np.int32)
                for row, place in enumerate(together):
                    chunk = prompt.chunks[place]
                    mel[row, :, : chunk.shape[1]], lengths[row] = chunk, chunk.shape[1]
                self.shapes.add(f"encode_audio {count} x {size}")
                heard = np.asarray(
                    device.encode_audio(self._program, parameters, mel, lengths), np.float32
                )
                outputs |= {
                    place: heard[row, : prompt.chunk_tokens[place]]
                    for row, place in enumerate(together)
                }
        return np.concatenate([outputs[place] for place in range(len(sizes))])


FinishReason = Literal["stop", "length", "repetition", "cancelled"]
# how a prompt ends that `render_prompt` makes; another template may leave the line break out
_REASONING_OPENS = b"<think>\n"


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was generated: tokens (the stop token not among them), and why it ended.

    `logprobs` are those of the model's own distribution, `sampling_logprobs` of the one that was
    drawn from: tempered, restricted and penalised as asked. `finish_reason` is "stop" (a stop token
    or a stop string), "length", "repetition" (it had fallen into a loop) or "cancelled"; `end` is
    the stop token, where one has ended it, and `stop_overlap_bytes` the bytes at the end of the
    last token that belong to a stop string.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    sampling_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    stop_token: StopToken | None = None
    stop_overlap_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """News of a request: text that was added (whole characters), and at the end its completion."""

    request: int
    text: str
    completion: Completion | None = None


@dataclasses.dataclass
class _Group:
    """Requests that share a prompt and have not all been given a slot."""

    prompt: Prompt
    waiting: "collections.deque[RequestState]"
    prefix: device.Prefix | None = None


class Engine:
    """Answers prompts with one model.

    Args:
        config: the model's shape.
        parameters: its tree, or what `models.quantize_weights` makes of it; adapters may be beside
            the decoder's kernels (`models.attach_lora`), and stay there.
        tokenizer: of the model.
        compute: how it is computed.
        slots: requests answered side by side.
        slot_tokens: that a slot holds, prompt and reply; at most the model's positions, which are
        the default.
        cache_dtype: of keys and values; by default that of the computation.
        steps: tokens a call to the device adds to each slot, at most: more make streaming coarser
        and the host's share smaller.
        mesh: where weights and slots lie, by `compute.rules`; None for one device. Weights that lie
            elsewhere, as a training state's do, are sent from device to device. In a run of several
            processes each makes the same calls.
        donate: give up the decoder's parameters as the engine's own copy is made, layer by layer.

    Raises:
        GenerationError: slots, slot_tokens or steps are out of range, or the slots cannot be shared
        out evenly.
        ConfigError: the rules cannot place a parameter on the mesh.
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
        donate: bool = False,
    ):
        limit = config.decoder.max_positions
        self._slot_tokens = limit if slot_tokens is None else slot_tokens
        if slots <= 0 or steps <= 0:
            raise GenerationError(f"slots={slots} and steps={steps} must be positive")
        if not 0 < self._slot_tokens <= limit:
            raise GenerationError(
                f"slot_tokens={slot_tokens} must lie between 1 and the model's {limit} positions"
            )
        self._program = device.EngineSpec(
            config, dataclasses.replace(compute, remat="none"), cache_dtype or compute.dtype
        )
        self._mesh = mesh
        if mesh is not None and slots % (parts := num_batch_shards(compute.rules, mesh)):
            raise GenerationError(
                f"slots={slots} cannot be shared out over the {parts} parts of the mesh; take a multiple"
            )
        self._parameters = self._decode_layout_params(parameters, donate=donate)
        self._tokenizer = tokenizer
        self._forced_suffix = np.asarray(tokenizer.encode(THINK_END), np.int32)
        self._steps = steps
        with on_mesh(self._mesh):
            self._slots = device.empty_slots(self._program, slots, self._slot_tokens)
        self._audio_encoder = AudioEncoder(self._program)
        self._slot_requests: list[RequestState | None] = [None] * slots
        self._queue: collections.deque[_Group] = collections.deque()
        self._ended: list[RequestOutput] = []  # cancelled before they had a slot
        self._numbers = itertools.count()
        self._shapes: set[str] = set()
        self._written, self._seconds = 0, 0.0

    @property
    def programs(self) -> tuple[str, ...]:
        """What was compiled for this engine: a name and the bucket of each program."""
        return tuple(sorted(self._shapes | self._audio_encoder.shapes))

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
        return self._slot_requests.count(None)

    @property
    def busy(self) -> bool:
        """Whether any request waits or is being answered."""
        return bool(self._queue or self._ended) or self.free_slots < len(self._slot_requests)

    def fits_slot(self, prompt: Prompt, samplings: Sequence[Sampling]) -> bool:
        """Whether a slot is long enough for a prompt and what may follow it."""
        return (
            prompt.length + max(sampling.max_new_tokens for sampling in samplings)
            <= self._slot_tokens
        )

    def set_parameters(
        self, parameters: Parameters, *, donate: bool = False, lora_only: bool = False
    ) -> None:
        """Answers with other weights of the same shape from now on, those of a training state for example.

        Args:
            parameters: the tree, as the engine was made with.
            donate: give up the decoder's as the engine's own copy is made.
            lora_only: of the decoder's layers only the adapters beside the kernels are others:
                nothing else is copied.

        Raises:
            GenerationError: requests are being answered, which began with the old ones.
        """
        if self.busy:
            raise GenerationError(
                "the weights cannot change while requests are being answered; run them to their end first"
            )
        held = self._parameters["decoder"]["layers"] if lora_only else ()
        self._parameters = {}  # the old ones go before the new ones come
        if lora_only:
            self._parameters = self._with_adapters_of(parameters, held)
        else:
            self._parameters = self._decode_layout_params(parameters, donate=donate)

    def _with_adapters_of(self, parameters: Parameters, held: tuple[Parameters, ...]) -> Parameters:
        """Returns the engine's layers `held` with the adapters of other parameters, which give the rest of the model."""
        decoder = dict(parameters["decoder"])
        adapters = self._cast(extract_lora(decoder.pop("layers")))
        rest: Parameters = {**parameters, "decoder": self._cast(decoder)}
        if self._mesh is not None:
            shardings = weight_shardings(self._program.config, self._program.compute, self._mesh)
            shardings = {
                **shardings,
                "decoder": {name: shardings["decoder"][name] for name in decoder},
            }
            rest = jax.device_put(rest, shardings)
        layers = held
        if adapters:
            apart = unstack_layers({"decoder": {"layers": adapters}})["decoder"]["layers"]
            places = jax.tree.map(
                lambda leaf: leaf.sharding, tuple(extract_lora(layer) for layer in held)
            )
            apart = jax.device_put(apart, places)
            layers = tuple(
                replace_lora(layer, lora) for layer, lora in zip(held, apart, strict=True)
            )
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
            check_prompt_fits(
                prompt,
                self._program.config,
                new_tokens=sampling.max_new_tokens,
                slot_tokens=self._slot_tokens,
            )
        in_reasoning = self._opens_reasoning(prompt)
        requests = [
            RequestState(next(self._numbers), sampling, self._tokenizer, in_reasoning=in_reasoning)
            for sampling in samplings
        ]
        self._queue.append(_Group(prompt, collections.deque(requests)))
        return [request.number for request in requests]

    def cancel(self, request: int) -> None:
        """Gives a request up; its completion holds what was written. One that has ended, or never was, is left alone."""
        for slot, occupant in enumerate(self._slot_requests):
            if occupant is not None and occupant.number == request:
                self._free(slot)
                self._ended.append(_final_output(occupant, "cancelled"))
                return
        for group in self._queue:
            for waiting in group.waiting:
                if waiting.number == request:
                    group.waiting.remove(waiting)
                    self._ended.append(_final_output(waiting, "cancelled"))
                    return

    def step(self) -> list[RequestOutput]:
        """Fills free slots from the queue, decodes once, and tells what is new."""
        with on_mesh(self._mesh):
            return self._step()

    def _step(self) -> list[RequestOutput]:
        started = time.perf_counter()
        outputs, self._ended = self._ended, []
        admitted = self._admit()
        running = [
            slot for slot, occupant in enumerate(self._slot_requests) if occupant is not None
        ]
        if not running:
            return outputs
        self._shapes.add(f"decode {len(self._slot_requests)} x {self._steps}")
        self._slots, decoded = device.decode(
            self._program,
            self._parameters,
            self._slots,
            self._forced_suffix,
            bool(self._queue),
            self._steps,
        )
        firsts, decoded = jax.device_get((admitted, decoded))
        for slot in running:
            occupant = self._slot_requests[slot]
            assert occupant is not None
            if slot in firsts:
                first = firsts[slot]
                occupant.add(first.token, first.logprob, first.sampling_logprob)
            new = slice(0, int(decoded.count[slot]))
            occupant.add(
                decoded.tokens[slot, new],
                decoded.logprobs[slot, new],
                decoded.sampling_logprobs[slot, new],
            )
            outputs += self._update_slot(slot, occupant, running=bool(decoded.running[slot]))
        self._written += len(firsts) + int(decoded.count.sum())
        self._seconds += time.perf_counter() - started
        return outputs

    def run(self) -> Iterator[RequestOutput]:
        """Steps until nothing waits and nothing runs."""
        while self.busy:
            yield from self.step()

    def generate(
        self, prompts: Sequence[Prompt], samplings: Sequence[Sampling]
    ) -> Iterator[tuple[int, Completion]]:
        """Answers every prompt; yields (index of the prompt, completion) as each ends.

        Raises:
            GenerationError: a prompt and its new tokens do not fit a slot; nothing has been
                computed then.
        """
        places: dict[int, int] = {}
        for index, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            try:
                check_prompt_fits(
                    prompt,
                    self._program.config,
                    new_tokens=sampling.max_new_tokens,
                    slot_tokens=self._slot_tokens,
                )
            except GenerationError as error:
                raise GenerationError(f"prompt {index}: {error}") from None
        for index, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            places[self.submit(prompt, [sampling])[0]] = index
        for output in self.run():
            if output.completion is not None and output.request in places:
                yield places[output.request], output.completion

    def _admit(self) -> dict[int, device.Sampled]:
        """Gives free slots to the requests at the head of the queue; returns the first token of each, by slot."""
        firsts = {}
        while self._queue and None in self._slot_requests:
            group = self._queue[0]
            if not group.waiting:
                self._queue.popleft()
                continue
            if group.prefix is None:
                group.prefix = self._read(group.prompt)
            request, slot = group.waiting.popleft(), self._slot_requests.index(None)
            sampling = request.sampling
            admission = device.RequestParams(
                limit=np.array([sampling.max_new_tokens], np.int32),
                pause=np.array([sampling.max_reasoning_tokens or 0], np.int32),
                stops=self._stops(sampling),
                settings=SamplingArrays.of([sampling]),
            )
            self._slots, firsts[slot] = device.insert(
                self._program, self._slots, group.prefix, admission, slot
            )
            self._slot_requests[slot] = request
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
            heard = (
                self._audio_encoder.encode(self._parameters, prompt)
                if prompt.audio_embeddings is None
                else prompt.audio_embeddings
            )
            audio[is_audio] = heard
        self._shapes.add(f"prefill {size}{' with sound' if prompt.chunks else ''}")
        self._shapes.add(f"insert {size}")
        return device.prefill(
            self._program, self._parameters, tokens, np.int32(prompt.length), audio, is_audio
        )

    def _opens_reasoning(self, prompt: Prompt) -> bool:
        """Returns whether a prompt ends in the start of a reasoning, which the model then goes on with."""
        last = prompt.tokens[-len(_REASONING_OPENS) :].tolist()
        return (
            b"".join(map(self._tokenizer.token_bytes, last))
            .rstrip()
            .endswith(_REASONING_OPENS.rstrip())
        )

    def _stops(self, sampling: Sampling) -> np.ndarray:
        tokens = (self._tokenizer.special.eot, *sampling.stop_tokens)
        return np.array([[*tokens, *[device.NO_TOKEN] * (MAX_STOP_TOKENS - len(tokens))]], np.int32)

    def _update_slot(
        self, slot: int, occupant: RequestState, *, running: bool
    ) -> list[RequestOutput]:
        """What is new of a slot; frees it where its request has ended, and lets it go on where it only paused."""
        if occupant.stopped:
            reason: FinishReason = "stop"
        elif occupant.repeated:
            reason = "repetition"
        elif occupant.at_limit:
            reason = "length"
        else:
            if not running:  # it paused: its reasoning has had its tokens
                forced = 0 if occupant.reasoning_ended else len(self._forced_suffix)
                self._slots = device.resume(self._program, self._slots, slot, forced)
            text = occupant.take_new_text()
            return [RequestOutput(occupant.number, text)] if text else []
        self._free(slot)
        return [_final_output(occupant, reason)]

    def _free(self, slot: int) -> None:
        with on_mesh(self._mesh):
            self._slots = device.release(self._program, self._slots, slot)
        self._slot_requests[slot] = None

    def _decode_layout_params(self, parameters: Parameters, *, donate: bool) -> Parameters:
        """Weights in the engine's layout, where it computes."""
        dtype = self._program.compute.dtype
        layers = jax.tree.leaves(parameters["decoder"]["layers"], is_leaf=is_quantized)
        own = donate or not any(
            is_quantized(leaf) or leaf.dtype == dtype for leaf in layers
        )  # casting them makes others
        apart = unstack_layers(
            {**parameters, "decoder": self._cast(parameters["decoder"])}, donate=own
        )
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
            lambda leaf: leaf if is_quantized(leaf) else leaf.astype(dtype),
            tree,
            is_leaf=is_quantized,
        )
        return cast


def _final_output(request: RequestState, reason: FinishReason) -> RequestOutput:
    tokens, logprobs, sampling_logprobs = request.output_tokens()
    completion = Completion(
        tokens, logprobs, sampling_logprobs, reason, request.stop_token, request.stop_overlap_bytes
    )
    return RequestOutput(request.number, request.take_new_text(last=True), completion)
