r"""Pairs a second of a DPO step: beside TRL's DPOTrainer, and with shared prompts beside not.

`python -m benchmarks.preference_step` trains the 30 M-parameter decoder in fp32 on a CPU, with two
threads. On text alone it is timed beside TRL's DPOTrainer, with a frozen copy of the policy for its
reference and with stored log-probabilities. Both begin with the same weights and train on the same
pairs of tokens with AdamW, clipping and no checkpointing of activations; TRL pads each reply, with
its prompt, to the longest of the batch. Their losses must agree, or the comparison is refused.

Then our step alone is timed on prompts of 300 tokens, of which 10 s of sound take a part, and
replies of 60: with the prompt computed once for both replies of a pair, and once for each. The
ratio stands beside the one that counting allows, of the products and of the encodings of clips,
which both compute once for a pair.

The sides take turns, each in a process of its own; ours begin with large memory pages, as our
programs do. Needs TRL, which works with the transformers and torch of the test extras:

    pip install --no-deps trl==1.16.0 datasets==5.2.0 accelerate==1.15.0 \
      dill multiprocess xxhash pandas python-dateutil pytz httpx

`--smoke` does little of each, to see whether it runs.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from benchmarks.allocator import allocator_environment
from benchmarks.compare import Step, compare_speed
from benchmarks.small_model import small_model
from benchmarks.trl_steps import TrainerSteps
from stepaudio_jax.audio import MEL_BINS
from stepaudio_jax.audio.lengths import audio_embeddings_per_chunk
from stepaudio_jax.config import (
    ComputeConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    Part,
    Preference,
    SourceConfig,
    StageConfig,
)
from stepaudio_jax.data.batch import Batch, batch_shape, collate
from stepaudio_jax.data.preference_pairs import (
    CHOSEN,
    REJECTED,
    LabeledReplies,
    PairFormat,
    join_replies,
)
from stepaudio_jax.data.record import AudioChunk, Example
from stepaudio_jax.models import init_parameters
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.text import Message, TextPart, TokenizedDialogue
from stepaudio_jax.training.flops import decoder_flops, part_flops
from stepaudio_jax.training.initial_weights import ModelParams
from stepaudio_jax.training.preference_step import make_preference_step, make_reference_step
from stepaudio_jax.training.train_state import abstract_train_state, init_train_state

OURS, PEER = "stepaudio_jax", "TRL"
SHARED, NOT_SHARED = "shared prompts", "a prompt for each"
THREADS = 2
BETA, LEARNING_RATE = 0.1, 1e-5
MEL_FRAMES = 1000  # of 10 s
# By how much the losses of the first steps may differ, which are about log 2.
MAX_LOSS_DIFFERENCE = 1e-3
COMPARED_STEPS = 3
PAD_TOKEN = 0
TOKENIZER = pathlib.Path(__file__).resolve().parents[1] / "models" / "tiny_base"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One comparison.

    Attributes:
        name: what it is called.
        pairs: of a step.
        prompt, reply: ranges of their tokens, the end excluded; lengths are drawn evenly.
        seq_len: tokens of our rows, which hold as many pairs as fit.
        mel_frames: of the clip that each prompt begins with; 0 for text alone.
        stored: whether the reference's log-probabilities are computed beforehand.
        shares_prompt: whether the replies of a pair share their prompt in our rows.
    """

    name: str
    pairs: int
    prompt: tuple[int, int]
    reply: tuple[int, int]
    seq_len: int
    mel_frames: int = 0
    stored: bool = False
    shares_prompt: bool = True

    @property
    def model(self) -> ModelConfig:
        """Returns the model's shape."""
        return small_model(max_positions=1024)

    @property
    def trainable(self) -> tuple[Part, ...]:
        """Returns the trained parts; the encoder is frozen."""
        return ("adaptor", "decoder") if self.mel_frames else ("decoder",)

    def row(self, rows: int = 1) -> DataConfig:
        """Returns the sizes of a batch of so many rows."""
        return DataConfig(
            sources=(SourceConfig(path="drawn"),),
            batch_size=rows,
            seq_len=self.seq_len,
            # A row holds no more clips than prompts.
            audio_chunks_per_seq=self.seq_len // self.prompt[0] if self.mel_frames else 0,
            mel_frames_per_chunk=max(self.mel_frames, 8),
        )


def text_jobs(pairs: int) -> list[Job]:
    """Returns the jobs beside TRL."""
    sizes: dict[str, Any] = {
        "pairs": pairs,
        "prompt": (32, 129),
        "reply": (32, 129),
        "seq_len": 512,
    }
    return [
        Job(name="text, a frozen reference", **sizes),
        Job(name="text, a stored reference", stored=True, **sizes),
    ]


def sound_job(pairs: int, *, shares_prompt: bool) -> Job:
    """Returns the job with sound: a pair fills a row exactly."""
    prompt, reply = 300, 60
    copies = 1 if shares_prompt else 2
    return Job(
        name="prompts of 300 tokens with 10 s of sound, replies of 60",
        pairs=pairs,
        prompt=(prompt, prompt + 1),
        reply=(reply, reply + 1),
        # The last token of a reply is a target only.
        seq_len=copies * (prompt - 1) + 2 * reply,
        mel_frames=MEL_FRAMES,
        shares_prompt=shares_prompt,
    )


@dataclasses.dataclass(frozen=True)
class TokenPair:
    """A pair as random tokens; a prompt with sound begins with its audio tokens.

    Attributes:
        prompt, chosen, rejected: the tokens.
        mel: log-mel [mel_bins, mel_frames] of the clip; None for text alone.
    """

    prompt: NDArray[np.int32]
    chosen: NDArray[np.int32]
    rejected: NDArray[np.int32]
    mel: NDArray[np.float32] | None


def draw_pairs(job: Job) -> list[TokenPair]:
    """Returns the pairs of a step, the same for all sides."""
    rng = np.random.default_rng(0)

    def tokens(length: tuple[int, int]) -> NDArray[np.int32]:
        size = int(rng.integers(*length))
        return rng.integers(1, job.model.decoder.vocab_size, size=size, dtype=np.int32)

    return [
        TokenPair(
            tokens(job.prompt),
            tokens(job.reply),
            tokens(job.reply),
            rng.normal(size=(MEL_BINS, job.mel_frames)).astype(np.float32)
            if job.mel_frames
            else None,
        )
        for _ in range(job.pairs)
    ]


def pair_example(job: Job, pair: TokenPair, number: int) -> Example:
    """Returns a pair in our form."""

    def view(reply: NDArray[np.int32]) -> TokenizedDialogue:
        loss_mask = np.arange(pair.prompt.size + reply.size) >= pair.prompt.size
        return TokenizedDialogue(np.concatenate([pair.prompt, reply]), loss_mask, ())

    def audio_index(dialogue: TokenizedDialogue) -> NDArray[np.int32]:
        positions = np.arange(dialogue.tokens.size, dtype=np.int32)
        embeddings = audio_embeddings_per_chunk(job.mel_frames) if job.mel_frames else 0
        return np.where(positions < embeddings, positions, -1).astype(np.int32)

    # Only which replies there are, and which is better, is read from it.
    message = Message(role="assistant", parts=(TextPart("drawn"),))
    return join_replies(
        LabeledReplies((), {CHOSEN: message, REJECTED: message}, label=1.0, margin=0.0),
        [view(pair.chosen), view(pair.rejected)],
        audio_index,
        () if pair.mel is None else (AudioChunk(mel=pair.mel, labels=None),),
        shares_prompt=job.shares_prompt,
        record=(0, number),
        reference_logprobs=np.full(3, np.nan, np.float32) if job.stored else None,
    )


def pack(examples: Sequence[Example], job: Job) -> list[list[Example]]:
    """Puts each pair into the first row with room."""
    rows: list[list[Example]] = []
    for example in examples:
        for row in rows:
            if sum(other.tokens.size for other in row) + example.tokens.size <= job.seq_len:
                row.append(example)
                break
        else:
            rows.append([example])
    return rows


def our_step(job: Job, losses: pathlib.Path | None = None) -> Step:
    """Returns a function that makes one step.

    Args:
        job: to run.
        losses: file that the losses of the steps are appended to; None for none.
    """
    rows = pack(
        [pair_example(job, pair, number) for number, pair in enumerate(draw_pairs(job))], job
    )
    data = job.row(len(rows))
    objective = Preference(beta=BETA, precompute_reference=job.stored)
    stage = StageConfig(
        name="speed",
        steps=1_000_000,
        data=data,
        objective=objective,
        optimizer=OptimizerConfig(
            learning_rate=LEARNING_RATE, decay="constant", weight_decay=0.0, clip_norm=1.0
        ),
        trainable=job.trainable,
    )
    compute = ComputeConfig(dtype="float32", remat="none", unroll=0)
    config = Config(run_dir="none", stages=(stage,), model=job.model, compute=compute)
    start = abstract_train_state(config, 0, job.model, make_mesh(config.mesh))
    params = ModelParams(init_parameters(job.model, jax.random.key(0), compute))
    state = init_train_state(config, 0, job.model, start, params)
    pair_format = PairFormat(objective, job.shares_prompt, [] if job.stored else None)
    batch = collate(rows, batch_shape(data, None, pad_token=PAD_TOKEN, pair_format=pair_format))
    if job.stored:
        batch = with_reference(batch, jax.jit(make_reference_step(start.model_def))(state, batch))
    step = jax.jit(make_preference_step(start.model_def, stage, start.optimizer), donate_argnums=0)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        append_loss(losses, float(metrics["loss"]))

    return run


def with_reference(batch: Batch, sums: dict[str, Any]) -> Batch:
    """Returns the batch with the log-probabilities that `make_reference_step` computed."""
    assert batch.pairs is not None
    stored = np.where(np.asarray(sums["tokens"]) > 0, np.asarray(sums["logprobs"]), np.nan)
    pairs = dataclasses.replace(batch.pairs, reference_logprobs=stored.astype(np.float32))
    return dataclasses.replace(batch, pairs=pairs)


def trl_step(job: Job, losses: pathlib.Path | None = None) -> Step:
    """Returns the same by TRL, on the same tokens and from the same weights; see `our_step`."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from tests.models.torch_reference import qwen2

    torch.set_num_threads(THREADS)
    weights = jax.tree.map(
        lambda leaf: torch.tensor(np.asarray(leaf)),
        init_parameters(job.model, jax.random.key(0), ComputeConfig(dtype="float32"))["decoder"],
    )

    class TokenTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset  # it has tokens already

        def training_step(self, *arguments: Any, **keywords: Any) -> Any:
            loss = super().training_step(*arguments, **keywords)
            append_loss(losses, float(loss))
            return loss

    def make_model() -> Any:
        # transformers' default attention, as its users have it.
        model = qwen2(weights, job.model.decoder)
        model.set_attn_implementation("sdpa")
        return model.train()

    config = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=job.pairs,
        beta=BETA,
        precompute_ref_log_probs=job.stored,
        max_length=None,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta1=OptimizerConfig.b1,
        adam_beta2=OptimizerConfig.b2,
        adam_epsilon=OptimizerConfig.eps,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=1_000_000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1_000_000,
    )
    rows = [
        {
            "prompt_ids": pair.prompt.tolist(),
            "chosen_ids": pair.chosen.tolist(),
            "rejected_ids": pair.rejected.tolist(),
        }
        for pair in draw_pairs(job)
    ]

    def make_trainer(callbacks: list[Any]) -> Any:
        return TokenTrainer(
            model=make_model(),
            ref_model=None if job.stored else make_model().eval(),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(TOKENIZER),
            callbacks=callbacks,
        )

    return TrainerSteps(make_trainer)


def append_loss(losses: pathlib.Path | None, loss: float) -> None:
    """Appends the loss of a step to a file, if there is one."""
    if losses is not None:
        with losses.open("a", encoding="utf-8") as file:
            file.write(json.dumps(loss) + "\n")


def check_losses(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """Checks that both sides had the same losses, and so did the same work.

    Raises:
        RuntimeError: they had not.
    """
    of_sides = [
        [float(line) for line in path.read_text(encoding="utf-8").splitlines()[:COMPARED_STEPS]]
        for path in (ours, theirs)
    ]
    if not np.allclose(of_sides[0], of_sides[1], rtol=0, atol=MAX_LOSS_DIFFERENCE):
        raise RuntimeError(f"the losses of {OURS} and {PEER} differ: {of_sides}")


def pair_flops(job: Job) -> float:
    """Returns the FLOPs of a pair of a job whose lengths are fixed, by formula.

    The decoder's of a prompt of P tokens and replies of R, where F(n) is a forward pass over n:
    2 F(P + R) with a prompt for each, and F(P) less where it is shared, attention included. A
    trained decoder has three times those of its forward pass, and the reference's adds one.
    """
    prompt, reply = job.prompt[0], job.reply[0]
    decoder = job.model.decoder
    forward = 2 * sum(decoder_flops(decoder, prompt + reply))
    if job.shares_prompt:
        forward -= sum(decoder_flops(decoder, prompt))
    one_clip = dataclasses.replace(job.row(), audio_chunks_per_seq=1)
    trained = part_flops(job.model, one_clip, job.trainable)
    reference = part_flops(job.model, one_clip, ())
    # Policy and reference share the frozen encoder's output.
    sound = trained["encoder"] + trained["adaptor"] + reference["adaptor"]
    return 4 * forward + sound


def main() -> None:
    """Times all sides and prints the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each turn")
    parser.add_argument("--smoke", action="store_true", help="little of each")
    options = parser.parse_args()
    rounds, steps = (1, 1) if options.smoke else (options.rounds, options.steps)
    use_cores(THREADS)
    for job in text_jobs(2 if options.smoke else 16):
        compare_with_trl(job, rounds, steps)
    compare_shared_prompts(1 if options.smoke else 4, rounds, steps)


def use_cores(count: int) -> None:
    """Keeps this process, and those that it starts, to so many cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def compare_with_trl(job: Job, rounds: int, steps: int) -> None:
    """Times a job by both sides and prints pairs a second."""
    folder = pathlib.Path(tempfile.mkdtemp())
    files = {OURS: folder / "ours", PEER: folder / "theirs"}
    sides = {
        OURS: functools.partial(our_step, job, files[OURS]),
        PEER: functools.partial(trl_step, job, files[PEER]),
    }
    seconds = time_sides(sides, (OURS,), rounds, steps)
    check_losses(files[OURS], files[PEER])
    pairs = draw_pairs(job)
    useful = sum(2 * pair.prompt.size + pair.chosen.size + pair.rejected.size for pair in pairs)
    longest = max(pair.prompt.size + max(pair.chosen.size, pair.rejected.size) for pair in pairs)
    rows = pack([pair_example(job, pair, 0) for pair in pairs], job)
    print(
        f"{job.name}: {job.pairs} pairs a step, prompts and replies of {job.prompt[0]} to"
        f" {job.prompt[1] - 1} tokens, {useful} in all; {PEER} pads them to"
        f" {2 * job.pairs * longest}, ours are in {len(rows)} rows of {job.seq_len}"
    )
    print_speeds(job, seconds)
    print(f"  ratio {seconds[PEER] / seconds[OURS]:.2f}", flush=True)


def compare_shared_prompts(pairs: int, rounds: int, steps: int) -> None:
    """Times our step with and without shared prompts and prints what counting allows."""
    jobs = {
        SHARED: sound_job(pairs, shares_prompt=True),
        NOT_SHARED: sound_job(pairs, shares_prompt=False),
    }
    sides = {name: functools.partial(our_step, job) for name, job in jobs.items()}
    seconds = time_sides(sides, tuple(jobs), rounds, steps)
    job = jobs[SHARED]
    print(f"{job.name}: {job.pairs} pairs a step, each clip encoded once")
    print_speeds(job, seconds)
    ratio = seconds[NOT_SHARED] / seconds[SHARED]
    allowed = pair_flops(jobs[NOT_SHARED]) / pair_flops(job)
    print(
        f"  ratio {ratio:.2f}; products and encodings allow {allowed:.2f}: "
        f"{ratio / allowed:.2f} of it",
        flush=True,
    )


def time_sides(
    sides: Mapping[str, Callable[[], Step]], ours: Sequence[str], rounds: int, steps: int
) -> dict[str, float]:
    """Returns the median seconds of a step of each side; those named in `ours` are ours."""
    as_launched = allocator_environment(os.environ, keep_freed=True)
    environments = dict.fromkeys(ours, as_launched)
    return compare_speed(sides, rounds=rounds, steps=steps, environments=environments)


def print_speeds(job: Job, seconds: dict[str, float]) -> None:
    """Prints the pairs a second of each side."""
    for name, of_step in seconds.items():
        print(f"  {name:18s} {job.pairs / of_step:6.2f} pairs/s")


if __name__ == "__main__":
    main()
