"""The engine: continuous batching on the host, over the device's slots.

Requests wait in a queue. Whenever a slot is free, the next request's prompt is prefilled and put
into it; all slots then decode together, a few tokens a call. Programs are compiled for buckets of
prompt lengths and of audio chunks, so their number does not grow with the requests. Where requests
come while others run, as in a server, prompts are prefilled in chunks between the calls of `decode`
(`generation.chunked_prefill`).
"""

import collections
import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32
from numpy.typing import NDArray

from stepaudio_jax.audio.lengths import max_mel_frames
from stepaudio_jax.config import ComputeConfig, ModelConfig
from stepaudio_jax.errors import GenerationError
from stepaudio_jax.generation import slots as device
from stepaudio_jax.generation.audio_encoder import (
    AudioEncoder,
    bucketed_groups,
    single_group_frames,
    single_groups,
)
from stepaudio_jax.generation.chunked_prefill import ChunkedPrefill, ChunkedPrefillOptions
from stepaudio_jax.generation.outputs import Completion, FinishReason, RequestOutput
from stepaudio_jax.generation.prefill_programs import (
    EngineSpec,
    Prefix,
    adapt_audio,
    encode_audio,
    prefill,
)
from stepaudio_jax.generation.prompts import Prompt, bucket, check_prompt_fits
from stepaudio_jax.generation.requests import RequestState, TokenConstraint
from stepaudio_jax.generation.sampling import MAX_STOP_TOKENS, Sampling, SamplingArrays
from stepaudio_jax.generation.shardings import decode_layout_params, on_mesh, replace_adapters
from stepaudio_jax.kernels.partitioning import target_platform
from stepaudio_jax.models import CacheDtype, Parameters
from stepaudio_jax.parallel import num_batch_shards
from stepaudio_jax.text import THINK_END, Tokenizer
from stepaudio_jax.text.dialogue import THINK_START_TAG

STEPS_PER_CALL = 16  # tokens that every slot decodes before the host looks at them
_MIN_ROWS, _ROWS_RATIO = 1, 4  # of the programs that decode a part of the slots
# How a prompt of `render_prompt` ends; another template may leave out the line break.
_THINK_START = f"{THINK_START_TAG}\n".encode()
# The first token of each admitted request with its alternatives, by slot.
_FirstTokens = dict[int, Any]


class Engine:
    """Answers prompts with one model.

    Args:
        config: the model's shape.
        parameters: its tree, or the result of `models.quantize_weights`; adapters may be beside the
            decoder's kernels (`models.attach_lora`), and stay there.
        tokenizer: the model's tokenizer.
        compute: dtypes, kernels and sharding rules of the computation.
        slots: requests answered side by side.
        slot_tokens: tokens that a slot holds, prompt and reply; None for the model's positions.
        cache_dtype: dtype of keys and values; None for that of the computation.
        steps: tokens that a call of the device adds to each slot, at most: more make streaming
            coarser and the host's share smaller.
        mesh: the devices that hold weights and slots, by `compute.rules`; None for one device.
            Weights that lie elsewhere, as a training state's do, are sent from device to device. In
            a run of several processes each makes the same calls.
        donate: give up the decoder's parameters as the engine's own copy is made, layer by layer.
        chunked_prefill: prefill prompts in chunks, and keep their beginnings; None to prefill each
            prompt at once.
        max_top_logprobs: most alternatives of a token that a request may ask for.
        has_masks: whether requests may have constraints.

    Raises:
        GenerationError: slots, slot_tokens or steps are out of range, or the slots are no multiple
            of the mesh's batch shards.
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
        steps: int = STEPS_PER_CALL,
        mesh: Mesh | None = None,
        donate: bool = False,
        chunked_prefill: ChunkedPrefillOptions | None = None,
        max_top_logprobs: int = 0,
        has_masks: bool = False,
    ):
        limit = config.decoder.max_positions
        self._slot_tokens = limit if slot_tokens is None else slot_tokens
        if slots <= 0 or steps <= 0:
            raise GenerationError(f"slots={slots} and steps={steps} must be positive")
        if not 0 < self._slot_tokens <= limit:
            raise GenerationError(
                f"slot_tokens={slot_tokens} must lie between 1 and the model's {limit} positions"
            )
        self._spec = EngineSpec(
            config,
            dataclasses.replace(compute, remat="none"),
            cache_dtype or compute.dtype,
            max_top_logprobs,
            has_masks,
        )
        self._mesh = mesh
        if mesh is not None and slots % (parts := num_batch_shards(compute.rules, mesh)):
            raise GenerationError(
                f"slots={slots} cannot be shared out over the {parts} parts of the mesh; take a"
                " multiple"
            )
        self._parameters = decode_layout_params(
            parameters, config, self._spec.compute, mesh, donate=donate
        )
        self._tokenizer = tokenizer
        self._forced_suffix = np.asarray(tokenizer.encode(THINK_END), np.int32)
        self._steps = steps
        cache_len = self._slot_tokens
        if chunked_prefill is not None:  # the last chunk of a prompt must not end past the cache
            cache_len = -(-cache_len // chunked_prefill.chunk_tokens) * chunked_prefill.chunk_tokens
        max_frames = max_mel_frames(config.encoder.positions)
        group = bucketed_groups if chunked_prefill is None else single_groups
        self._audio_encoder = AudioEncoder(
            functools.partial(encode_audio, self._spec),
            functools.partial(group, max_frames=max_frames),
        )
        self._chunked: ChunkedPrefill | None = None
        with on_mesh(self._mesh):
            self._slots = device.empty_slots(self._spec, slots, cache_len)
            if chunked_prefill is not None:
                self._chunked = ChunkedPrefill(
                    self._spec,
                    self._audio_encoder,
                    chunk_tokens=chunked_prefill.chunk_tokens,
                    cache_len=cache_len,
                    prefix_cache_bytes=chunked_prefill.prefix_cache_bytes,
                    audio_cache_bytes=chunked_prefill.audio_cache_bytes,
                )
        self._slot_requests: list[RequestState | None] = [None] * slots
        self._row_counts = _row_counts(slots, chunked_prefill, mesh)
        self._queue: collections.deque[_Group] = collections.deque()
        self._cancelled: list[RequestOutput] = []  # told of by the next step
        self._numbers = itertools.count()
        self._shapes: set[str] = set()
        self._prefill_budget = 0  # tokens of prompts that this step may still compute
        self._num_generated, self._seconds = 0, 0.0

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs that this engine has used: the name and bucket of each."""
        chunked = self._chunked.shapes if self._chunked is not None else set()
        return tuple(sorted(self._shapes | self._audio_encoder.shapes | chunked))

    @property
    def chunked_prefill(self) -> ChunkedPrefill | None:
        """What prefills in chunks, with its caches and counters; None where nothing does."""
        return self._chunked

    @property
    def slot_tokens(self) -> int:
        """Tokens that a slot holds, prompt and reply."""
        return self._slot_tokens

    @property
    def num_waiting(self) -> int:
        """The number of requests that have no slot yet."""
        return sum(len(group.waiting) for group in self._queue)

    @property
    def tokens_per_second(self) -> float:
        """Tokens generated a second of `step`, since the engine was made."""
        return self._num_generated / self._seconds if self._seconds else 0.0

    @property
    def free_slots(self) -> int:
        """The number of slots without a request."""
        return self._slot_requests.count(None)

    @property
    def num_slots(self) -> int:
        """The number of requests that are answered side by side."""
        return len(self._slot_requests)

    def is_waiting(self, request: int) -> bool:
        """Returns whether a request has no slot yet."""
        return any(item.number == request for group in self._queue for item in group.waiting)

    @property
    def busy(self) -> bool:
        """Whether any request waits or is being answered."""
        return bool(self._queue or self._cancelled) or self.free_slots < len(self._slot_requests)

    def fits_slot(self, prompt: Prompt, samplings: Sequence[Sampling]) -> bool:
        """Returns whether a slot is long enough for a prompt and the reply that may follow it."""
        new_tokens = max(sampling.max_new_tokens for sampling in samplings)
        return prompt.length + new_tokens <= self._slot_tokens

    def set_parameters(
        self, parameters: Parameters, *, donate: bool = False, lora_only: bool = False
    ) -> None:
        """Replaces the weights by others of the same shape, those of a training state for example.

        Args:
            parameters: the tree, as the engine was made with.
            donate: give up the decoder's parameters as the engine's own copy is made.
            lora_only: of the decoder's layers only the adapters beside the kernels differ, so
                nothing else is copied.

        Raises:
            GenerationError: requests are being answered, which began with the old weights.
        """
        if self.busy:
            raise GenerationError(
                "the weights cannot change while requests are being answered; run them to their end"
                " first"
            )
        if self._chunked is not None:
            self._chunked.forget()
        layers = self._parameters["decoder"]["layers"] if lora_only else ()
        self._parameters = {}  # the old ones go before the new ones come
        config, compute = self._spec.config, self._spec.compute
        if lora_only:
            self._parameters = replace_adapters(layers, parameters, config, compute, self._mesh)
        else:
            self._parameters = decode_layout_params(
                parameters, config, compute, self._mesh, donate=donate
            )

    def submit(
        self,
        prompt: Prompt,
        samplings: Sequence[Sampling],
        *,
        num_top_logprobs: int = 0,
        constraints: Sequence[TokenConstraint | None] | None = None,
    ) -> list[int]:
        """Queues a prompt, to be answered once for each of `samplings` and prefilled once for all.

        Args:
            prompt: the prompt.
            samplings: how each reply is sampled.
            num_top_logprobs: alternatives of each token, with their log-probabilities.
            constraints: of each reply, which tokens may come; None for any.

        Returns:
            The number of each request.

        Raises:
            GenerationError: the prompt is empty, or it and its new tokens do not fit a slot; or
                the engine was made for fewer alternatives, or without masks.
        """
        if num_top_logprobs > self._spec.max_top_logprobs:
            raise GenerationError(
                f"num_top_logprobs={num_top_logprobs} is more than the engine's"
                f" max_top_logprobs={self._spec.max_top_logprobs}"
            )
        if constraints is not None and not self._spec.has_masks:
            raise GenerationError("constraints need an engine with has_masks=True")
        if not prompt.length:
            raise GenerationError("the prompt is empty; it needs at least one token")
        for sampling in samplings:
            self.check_fits(prompt, sampling)
        in_reasoning = self._opens_reasoning(prompt)
        requests = [
            RequestState(
                next(self._numbers),
                sampling,
                self._tokenizer,
                in_reasoning=in_reasoning,
                num_top_logprobs=num_top_logprobs,
                constraint=constraint,
                has_special_text=self._chunked is None,
            )
            for sampling, constraint in zip(
                samplings, constraints or [None] * len(samplings), strict=True
            )
        ]
        self._queue.append(_Group(prompt, collections.deque(requests)))
        return [request.number for request in requests]

    def encode_audio(
        self, chunks: Sequence[NDArray[np.float32]]
    ) -> list[Float32[np.ndarray, "_audio_tokens _H"]]:
        """Returns the adaptor's outputs of chunks [mel bins, mel frames] of log-mel, with padding.

        For callers that give them to several prompts, as `Prompt.audio_embeddings`.
        """
        with on_mesh(self._mesh):
            return self._audio_encoder.encode(self._parameters, chunks)

    def adapt_audio(
        self, features: Float32[np.ndarray, "C audio_frames enc_hidden"]
    ) -> Float32[np.ndarray, "C _audio_tokens _H"]:
        """Returns the adaptor's outputs of chunks whose encoder's outputs are known."""
        with on_mesh(self._mesh):
            return np.asarray(adapt_audio(self._spec, self._parameters, features), np.float32)

    def cancel(self, request: int) -> None:
        """Cancels a request; its completion holds what was generated so far.

        A number that is unknown, or of a request that has ended, is ignored.
        """
        for slot, occupant in enumerate(self._slot_requests):
            if occupant is not None and occupant.number == request:
                self._free(slot)
                self._cancelled.append(occupant.final_output("cancelled"))
                return
        for group in self._queue:
            for waiting in group.waiting:
                if waiting.number == request:
                    group.waiting.remove(waiting)
                    self._cancelled.append(waiting.final_output("cancelled"))
                    return

    def generate(
        self, prompts: Sequence[Prompt], samplings: Sequence[Sampling]
    ) -> Iterator[tuple[int, Completion]]:
        """Answers every prompt; yields (index of the prompt, completion) as each ends.

        Raises:
            GenerationError: a prompt and its new tokens do not fit a slot; nothing has been
                computed then.
        """
        for index, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            try:
                self.check_fits(prompt, sampling)
            except GenerationError as error:
                raise GenerationError(f"prompt {index}: {error}") from None
        prompt_of_request: dict[int, int] = {}
        for index, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            (request,) = self.submit(prompt, [sampling])
            prompt_of_request[request] = index
        for output in self.run():
            if output.completion is not None and output.request in prompt_of_request:
                yield prompt_of_request[output.request], output.completion

    def run(self) -> Iterator[RequestOutput]:
        """Steps until no request waits or is being answered."""
        while self.busy:
            yield from self.step()

    def step(self) -> list[RequestOutput]:
        """Fills free slots from the queue, decodes once, and returns what that has added."""
        with on_mesh(self._mesh):
            return self._step()

    def _step(self) -> list[RequestOutput]:
        started = time.perf_counter()
        self._prefill_budget = 0 if self._chunked is None else self._chunked.chunk_tokens
        outputs, self._cancelled = self._cancelled, []
        admitted = self._admit()
        num_admitted = len(admitted)
        num_running = self.num_slots - self.free_slots
        if self._chunked is not None and 0 < num_admitted == num_running:
            # Nothing else runs: the first tokens need not wait for the second ones.
            self._add_first_tokens(jax.device_get(admitted))
            for slot in admitted:
                request = self._slot_requests[slot]
                assert request is not None
                outputs += self._update_slot(slot, request, active=True)
            self._num_generated += num_admitted
            self._seconds += time.perf_counter() - started
            return outputs
        if any(request and request.constraint for request in self._slot_requests):
            # The next mask depends on the token before it, so the host looks at each.
            admitted = self._add_first_tokens(jax.device_get(admitted))
            self._slots = device.set_allowed(self._spec, self._slots, self._allowed_tokens())
            max_steps = 1
        elif self._chunked is not None and admitted:
            max_steps = 1  # somebody waits for the first token
        else:
            max_steps = self._steps
        requests = {
            slot: request for slot, request in enumerate(self._slot_requests) if request is not None
        }
        if not requests:
            return outputs
        rows = next(size for size in self._row_counts if max(requests) < size)
        self._shapes.add(f"decode {rows} x {self._steps}")
        self._slots, decoded = device.decode(
            self._spec,
            self._parameters,
            self._slots,
            self._forced_suffix,
            bool(self._queue),
            self._steps,
            np.int32(max_steps),
            rows if rows < self.num_slots else None,
        )
        first_tokens, decoded = jax.device_get((admitted, decoded))
        self._add_first_tokens(first_tokens)
        for slot, request in requests.items():
            new = slice(0, int(decoded.count[slot]))
            request.add(
                decoded.tokens[slot, new],
                decoded.logprobs[slot, new],
                decoded.sampling_logprobs[slot, new],
                decoded.top.tokens[slot, new],
                decoded.top.logprobs[slot, new],
            )
            outputs += self._update_slot(slot, request, active=bool(decoded.active[slot]))
        self._num_generated += num_admitted + int(decoded.count.sum())
        self._seconds += time.perf_counter() - started
        return outputs

    def _add_first_tokens(self, first_tokens: "_FirstTokens") -> "_FirstTokens":
        """Adds to each admitted request its first token; returns that none are left to add."""
        for slot, (first, top) in first_tokens.items():
            request = self._slot_requests[slot]
            assert request is not None
            request.add(
                first.token, first.logprob, first.sampling_logprob, top.tokens, top.logprobs
            )
        return {}

    def _allowed_tokens(self) -> NDArray[np.uint32]:
        """Returns which tokens may come next in each slot, [slots, words]."""
        allowed = np.zeros((len(self._slot_requests), self._spec.mask_words), np.uint32)
        for slot, request in enumerate(self._slot_requests):
            if request is not None and request.constraint is not None and not request.stopped:
                request.constraint.write_allowed(allowed[slot])
        return allowed

    def _admit(self) -> "_FirstTokens":
        """Gives free slots to the first requests of the queue; returns each one's first token."""
        first_tokens = {}
        while self._queue:
            group = self._queue[0]
            if not group.waiting:
                self._queue.popleft()
                if self._chunked is not None:
                    self._chunked.abandon()
                continue
            if group.prefix is None and not self._prepare(group):
                break
            if None not in self._slot_requests:
                break
            assert group.prefix is not None
            request, slot = group.waiting.popleft(), self._slot_requests.index(None)
            sampling = request.sampling
            request.cached_tokens = group.cached_tokens
            allowed = np.zeros((1, self._spec.mask_words), np.uint32)
            if request.constraint is not None:
                request.constraint.write_allowed(allowed[0])
            params = device.RequestParams(
                max_tokens=np.array([sampling.max_new_tokens], np.int32),
                pause_at=np.array([sampling.max_reasoning_tokens or 0], np.int32),
                stop_tokens=self._stop_tokens(sampling),
                settings=SamplingArrays.of([sampling]),
                num_top_logprobs=np.array([request.num_top_logprobs], np.int32),
                is_masked=np.array([request.constraint is not None]),
                allowed=allowed,
            )
            self._slots, *first_tokens[slot] = device.insert(
                self._spec,
                self._slots,
                group.prefix,
                params,
                slot,
                block_tokens=None if self._chunked is None else self._chunked.chunk_tokens,
            )
            self._slot_requests[slot] = request
        return first_tokens

    def _prepare(self, group: "_Group") -> bool:
        """Prefills a group's prompt, or a part of it; returns whether it is prefilled."""
        if self._chunked is None:
            if None in self._slot_requests:
                group.prefix = self._prefill(group.prompt)
            return group.prefix is not None
        # Requests that run wait for less than two chunks, whether of one prompt or of several.
        while group.prefix is None and self._prefill_budget > 0:
            if not self._chunked.busy:
                self._chunked.begin(group.prompt)
                group.cached_tokens = self._chunked.reused
            cost, group.prefix = self._chunked.advance(self._parameters)
            self._prefill_budget -= cost
        return group.prefix is not None

    def warm_up(self) -> Iterator[str]:
        """Compiles every program that a request can need, so that none waits for a compilation.

        Yields:
            What has been compiled, one program after the other.

        Raises:
            GenerationError: requests are being answered, or prompts are not prefilled in chunks:
                the shapes of others are not known before.
        """
        if self.busy or self._chunked is None:
            raise GenerationError("warming up needs an idle engine with chunked_prefill")
        frames = single_group_frames(max_mel_frames(self._spec.config.encoder.positions))
        with on_mesh(self._mesh):
            yield from self._chunked.warm_up(self._parameters, frames)
        length = min(self._slot_tokens - 2, 2)
        prompt = Prompt(
            np.zeros(length, np.int32), np.zeros(length, bool), np.zeros(length, bool), (), ()
        )
        for rows in self._row_counts:  # requests take the first slots
            self.submit(prompt, [Sampling(temperature=0.0, max_new_tokens=2)] * rows)
            while self.busy:
                self.step()
            yield f"decode {rows}"
        with on_mesh(self._mesh):
            self._slots = device.resume(self._spec, self._slots, 0, 0)
            self._slots = device.release(self._spec, self._slots, 0)
            if self._spec.has_masks:
                self._slots = device.set_allowed(self._spec, self._slots, self._allowed_tokens())
        yield "resume"
        self._chunked.reset_counters()
        self._num_generated, self._seconds = 0, 0.0

    def _prefill(self, prompt: Prompt) -> Prefix:
        """Prefills a prompt, padded to its bucket."""
        size = min(bucket(prompt.length), self._slot_tokens)
        tokens, is_audio = np.zeros(size, np.int32), np.zeros(size, bool)
        tokens[: prompt.length], is_audio[: prompt.length] = prompt.tokens, prompt.is_audio
        hidden = self._spec.config.decoder.hidden
        audio = np.zeros((0, hidden), np.float32)
        if prompt.chunks:
            audio = np.zeros((size, hidden), np.float32)
            audio[is_audio] = self._audio_embeddings(prompt)
        self._shapes.add(f"prefill {size}{' with sound' if prompt.chunks else ''}")
        self._shapes.add(f"insert {size}")
        return prefill(
            self._spec, self._parameters, tokens, np.int32(prompt.length), audio, is_audio
        )

    def _audio_embeddings(self, prompt: Prompt) -> np.ndarray:
        """Returns the adaptor's outputs [audio tokens of the prompt, H] f32, on the host."""
        if prompt.audio_embeddings is not None:
            return prompt.audio_embeddings
        outputs = self._audio_encoder.encode(self._parameters, prompt.chunks)
        return np.concatenate(
            [output[:tokens] for output, tokens in zip(outputs, prompt.chunk_tokens, strict=True)]
        )

    def _update_slot(
        self, slot: int, request: RequestState, *, active: bool
    ) -> list[RequestOutput]:
        """Returns what is new of a request; frees its slot at its end, or resumes a paused one."""
        if request.stopped:
            reason: FinishReason = "stop"
        elif request.repeated:
            reason = "repetition"
        elif request.at_limit:
            reason = "length"
        else:
            if not active:  # it paused: its reasoning has had its tokens
                num_forced = 0 if request.reasoning_ended else len(self._forced_suffix)
                self._slots = device.resume(self._spec, self._slots, slot, num_forced)
            text = request.take_new_text()
            # Only a server shows tokens as they come; a batch job has them in its completions.
            tokens = () if self._chunked is None else request.take_new_tokens()
            return [RequestOutput(request.number, text, tokens=tokens)] if text or tokens else []
        self._free(slot)
        return [request.final_output(reason)]

    def _free(self, slot: int) -> None:
        with on_mesh(self._mesh):
            self._slots = device.release(self._spec, self._slots, slot)
        self._slot_requests[slot] = None

    def check_fits(self, prompt: Prompt, sampling: Sampling) -> None:
        """Checks that a slot holds a prompt and its reply, as `submit` does.

        Raises:
            GenerationError: it does not.
        """
        check_prompt_fits(
            prompt,
            self._spec.config,
            new_tokens=sampling.max_new_tokens,
            slot_tokens=self._slot_tokens,
        )

    def _opens_reasoning(self, prompt: Prompt) -> bool:
        """Returns whether a prompt ends in the start of a reasoning, which the reply continues."""
        last = prompt.tokens[-len(_THINK_START) :].tolist()
        text = b"".join(map(self._tokenizer.token_bytes, last))
        return text.rstrip().endswith(_THINK_START.rstrip())

    def _stop_tokens(self, sampling: Sampling) -> np.ndarray:
        """Returns the tokens [1, MAX_STOP_TOKENS] i32 that end a reply."""
        tokens = (self._tokenizer.special.eot, *sampling.stop_tokens)
        padding = [device.NO_TOKEN] * (MAX_STOP_TOKENS - len(tokens))
        return np.array([[*tokens, *padding]], np.int32)


def _row_counts(
    slots: int, chunked_prefill: ChunkedPrefillOptions | None, mesh: Mesh | None
) -> list[int]:
    """Returns for how many of the first slots there is a program that decodes, ascending.

    On a CPU every row costs time, also that of a slot without a request. Accelerators read the
    weights once for all rows, and a batch job keeps its slots full.
    """
    counts = [slots]
    if chunked_prefill is not None and mesh is None and target_platform() == "cpu":
        while counts[-1] > _MIN_ROWS:
            counts.append(max(counts[-1] // _ROWS_RATIO, _MIN_ROWS))
    return counts[::-1]


@dataclasses.dataclass
class _Group:
    """Requests of one prompt that wait for a slot."""

    prompt: Prompt
    waiting: "collections.deque[RequestState]"
    prefix: Prefix | None = None
    cached_tokens: int = 0
