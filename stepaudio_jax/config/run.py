"""A training run: where its weights come from, what it reads, and its stages in order."""

import dataclasses
import re
from typing import Literal

from stepaudio_jax.config.build import (
    check_floats,
    check_not_empty,
    check_seed,
    expand_paths,
    format_value,
)
from stepaudio_jax.config.model import FloatDtype, ModelConfig
from stepaudio_jax.config.objectives import AuxiliaryConfig, NextToken, PolicyGradient
from stepaudio_jax.config.sharding import MeshConfig, ShardingRules
from stepaudio_jax.errors import ConfigError

Part = Literal["encoder", "adaptor", "decoder"]
AttentionKernel = Literal["auto", "xla", "cudnn", "splash", "splash_interpreted"]
AudioChannel = Literal["first", "mix"]
RematName = Literal["query", "key", "value", "attn_out", "attn_proj", "gate", "up"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Where the run's weights come from; None: they are freshly initialised.

    `model` is a checkpoint made by this project or a Hugging Face folder (Step-Audio). `encoder`
    and `decoder` override their part with a folder of their own (Qwen2-Audio, Qwen2/Qwen2.5); the
    adaptor is then fresh unless `model` gives it.
    """

    model: str | None = None
    encoder: str | None = None
    decoder: str | None = None

    def __post_init__(self) -> None:
        check_not_empty(self, "model", "encoder", "decoder")
        expand_paths(self, "model", "encoder", "decoder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One JSONL file (or a glob of them) and its share of the mixture."""

    path: str
    weight: float = 1.0
    # shown in metrics, and what rewards are given by; None: the file's stem, with as many of the
    # folders above it as tell it from the stage's other sources
    name: str | None = None

    def __post_init__(self) -> None:
        check_not_empty(self, "name")
        check_floats(self)
        expand_paths(self, "path")
        if self.weight <= 0:
            raise ConfigError(f"weight={self.weight} of source {self.path!r} must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Random changes to the sound and its log-mel, in training only. Zero switches each one off."""

    # of a dialogue: all its clips are silent, and a model learns to guess what it cannot hear
    silence_probability: float = 0.0
    max_shift_s: float = 0.0  # silence put in front of a clip
    noise_probability: float = 0.0
    noise_snr_db: tuple[float, float] = (10.0, 40.0)
    gain_db: tuple[float, float] = (0.0, 0.0)
    frequency_masks: int = 0
    frequency_mask_bins: int = 0  # widest mask, in mel bins
    time_masks: int = 0
    time_mask_frames: int = 0  # widest mask, in mel frames

    def __post_init__(self) -> None:
        check_floats(self)
        for name in (
            "max_shift_s",
            "frequency_masks",
            "frequency_mask_bins",
            "time_masks",
            "time_mask_frames",
        ):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("silence_probability", "noise_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be between 0 and 1")
        for name in ("noise_snr_db", "gain_db"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ConfigError(f"{name}=({low}, {high}) must be (least, greatest)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and the static shape of a batch (see `stepaudio_jax.data.Batch`)."""

    sources: tuple[SourceConfig, ...] = ()
    batch_size: int = 8  # B: rows of the global batch
    seq_len: int = 4096  # T
    audio_chunks_per_seq: int = 4  # C: audio chunks (of at most 25 s) a row can hold
    mel_frames_per_chunk: int = 2504  # F: mel frames a chunk is padded to; 25 s have 2502
    channel: AudioChannel = (
        "first"  # of a clip with several, as the released front end has it; "mix": the mean of all
    )
    augmentation: AugmentationConfig = AugmentationConfig()
    loss_on_reasoning: bool = True
    history_reasoning: bool = (
        False  # later turns see the reasoning of earlier ones (see text.training_views)
    )
    check: Literal["all"] | int = (
        "all"  # records of each source that are checked before a run begins
    )
    on_bad_audio: Literal["error", "skip"] = "error"  # "skip" drops the record and counts it
    on_too_long: Literal["error", "skip"] = "error"  # a dialogue that does not fit an empty row
    on_bad_record: Literal["error", "skip"] = "error"  # one that cannot be read or rendered
    packing_bins_per_seq: int = (
        4  # rows kept open for each row of the batch; more pack a little tighter and cost memory
    )
    threads: int = 2  # threads that read and prepare records
    prefetch_batches: int = 2

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "seq_len",
            "mel_frames_per_chunk",
            "packing_bins_per_seq",
            "threads",
            "prefetch_batches",
        ):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive")
        if self.audio_chunks_per_seq < 0:
            raise ConfigError(
                f"audio_chunks_per_seq={self.audio_chunks_per_seq} must not be negative"
            )
        if self.check != "all" and self.check < 0:
            raise ConfigError(f"check={self.check} must be 'all' or a number of records")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, Adafactor, or Muon for matrices with AdamW for the rest; warm-up, then decay."""

    name: Literal["adamw", "adafactor", "muon"] = "adamw"
    learning_rate: float = 1e-5
    warmup_steps: int = 0  # update k of them has k / warmup_steps of the learning rate
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    final_learning_rate_fraction: float = (
        0.1  # of learning_rate, reached when the stage's last step is done
    )
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # on matrices only: never on biases, norms, embeddings' positions
    clip_norm: float = 1.0  # global norm of the gradients; 0 switches clipping off
    muon_learning_rate: float = (
        0.02  # of the matrices, when name is "muon"; learning_rate is that of the rest
    )
    muon_momentum: float = 0.95
    moment_dtype: FloatDtype = "float32"  # of the first moment (momentum); Adafactor has none

    def __post_init__(self) -> None:
        check_floats(self)
        for name in ("learning_rate", "muon_learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name}={getattr(self, name)} must be positive: nothing would learn"
                )
        for name in ("warmup_steps", "weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("b1", "b2", "muon_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)} must be at least 0 and less than 1"
                )
        if not self.eps > 0:
            raise ConfigError(f"eps={self.eps} must be positive")
        if not 0 <= self.final_learning_rate_fraction <= 1:
            raise ConfigError(
                f"final_learning_rate_fraction={self.final_learning_rate_fraction} must be between 0 and 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adaptation of the decoder: its matrices stay, narrow ones learn beside them.

    They stay beside them in the finished `model/` too: see docs/lora.md.
    """

    rank: int = 0  # 0: none
    alpha: float = 32.0  # their product is multiplied by alpha / rank
    targets: tuple[Literal["query", "key", "value", "output", "gate", "up", "down"], ...] = (
        *("query", "key", "value", "output"),
        *("gate", "up", "down"),
    )
    adapter: str | None = (
        None  # a PEFT adapter's folder, whose matrices go on learning; None: new ones
    )

    def __post_init__(self) -> None:
        expand_paths(self, "adapter")
        check_floats(self)
        if self.rank < 0:
            raise ConfigError(f"rank={self.rank} must not be negative")
        if self.adapter is not None and not self.rank:
            raise ConfigError(
                f"rank=0 has no adapter, and adapter={self.adapter!r} names one: set rank and alpha to its own"
            )
        if not self.alpha > 0:
            raise ConfigError(f"alpha={self.alpha} must be positive")
        if not self.targets:
            raise ConfigError("targets is empty: name the matrices to adapt, or set rank=0")

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / self.rank if self.rank else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Held-out loss during training; no sources means none."""

    data: DataConfig = DataConfig()
    every_steps: int = 0  # 0: only at the end of the stage
    batches: int = 8

    def __post_init__(self) -> None:
        if self.every_steps < 0:
            raise ConfigError(f"every_steps={self.every_steps} must not be negative")
        if self.batches <= 0:
            raise ConfigError(f"batches={self.batches} must be positive")
        if self.data.augmentation != AugmentationConfig():
            raise ConfigError(
                "augmentation changes the sound in training only; leave it out of evaluation.data"
            )

    @property
    def enabled(self) -> bool:
        return bool(self.data.sources)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of a run: its data, its objective, what learns and how."""

    name: str
    steps: int
    objective: NextToken | PolicyGradient = NextToken()
    data: DataConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    trainable: tuple[Part, ...] = ("adaptor", "decoder")
    lora: LoRAConfig = LoRAConfig()  # of the decoder, which `trainable` then leaves out
    gradient_accumulation_steps: int = 1  # micro-batches a step; rows must be a multiple of it

    def __post_init__(self) -> None:
        if not re.fullmatch(
            r"[A-Za-z0-9_-]+", self.name
        ):  # it names folders, and keys on the command line
            raise ConfigError(
                f"the stage's name={self.name!r} must be of letters, digits, '_' and '-'"
            )
        if self.steps <= 0:
            raise ConfigError(f"steps={self.steps} must be positive")
        if not self.data.sources:
            raise ConfigError("data.sources is empty: nothing to train on")
        if (
            self.gradient_accumulation_steps <= 0
            or self.data.batch_size % self.gradient_accumulation_steps
        ):
            raise ConfigError(
                f"data.batch_size={self.data.batch_size} must be a multiple of gradient_accumulation_steps={self.gradient_accumulation_steps}"
            )
        if self.lora.rank and "decoder" in self.trainable:
            raise ConfigError(
                "lora.rank adapts the decoder, which is in trainable: leave it out there, or set lora.rank=0"
            )
        if not self.trainable and not self.lora.rank:
            raise ConfigError("trainable is empty: nothing would learn")
        if (
            not self.data.audio_chunks_per_seq
            and "decoder" not in self.trainable
            and not self.lora.rank
        ):
            raise ConfigError(
                f"trainable={self.trainable} is what hears, and data.audio_chunks_per_seq=0 leaves it nothing to hear: nothing "
                "would learn; raise audio_chunks_per_seq, or let the decoder learn"
            )
        if isinstance(self.objective, PolicyGradient):
            self._check_policy_gradient()

    @property
    def num_updates(self) -> int:
        """Returns the number of optimizer updates in the stage."""
        return self.steps * self.objective.updates_per_step

    @property
    def auxiliary(self) -> AuxiliaryConfig:
        """Returns the auxiliary losses of a next-token objective; of another, none."""
        return (
            self.objective.auxiliary if isinstance(self.objective, NextToken) else AuxiliaryConfig()
        )

    @property
    def policy_gradient(self) -> PolicyGradient:
        """Returns the objective of a stage that is known to be of reinforcement learning.

        Raises:
            TypeError: it is not.
        """
        if not isinstance(self.objective, PolicyGradient):
            raise TypeError(f"stage {self.name!r} has the objective {self.objective.name}")
        return self.objective

    def _check_policy_gradient(self) -> None:
        if not self.policy_gradient.rewards:
            raise ConfigError(
                "objective.rewards is empty: policy_gradient needs at least one reward"
            )
        if "encoder" in self.trainable:
            raise ConfigError(
                "trainable names the encoder, which policy_gradient keeps frozen: its features are "
                "computed once a step"
            )
        if self.evaluation.enabled or self.gradient_accumulation_steps > 1:
            raise ConfigError(
                "evaluation.data and gradient_accumulation_steps are for objective=next_token; "
                "leave them out with policy_gradient"
            )
        augmentation = dataclasses.replace(self.data.augmentation, silence_probability=0.0)
        if augmentation != AugmentationConfig():
            raise ConfigError(
                "data.augmentation can only have silence_probability with policy_gradient"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved, and which of the saved states are kept: those that any of the rules keeps.

    Frozen parameters are saved once a stage: a checkpoint of LoRA is as small as its matrices and
    their moments.
    """

    every_steps: int = 500  # 0: only at the end of each stage
    keep: int = 2  # the last ones
    keep_every_steps: int = 0  # besides, every one at a multiple of so many steps; 0: none
    keep_best: int = (
        0  # besides, so many of lowest held-out loss, where it was measured at the step
    )

    def __post_init__(self) -> None:
        for name in ("every_steps", "keep_every_steps", "keep_best"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        if self.keep <= 0:
            raise ConfigError(f"keep={self.keep} must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How the model is computed, as opposed to what it is."""

    dtype: FloatDtype = (
        "bfloat16"  # of activations and matrix products; softmax, norms and losses are always fp32
    )
    param_dtype: FloatDtype = (
        "float32"  # of the trained parameters; frozen ones are kept in `dtype`
    )
    # of the decoder's residual stream; None: `dtype`. In bf16 it is rounded twice a layer, which
    # adds to the difference between the log-probabilities of sampling and of training.
    residual_dtype: FloatDtype | None = None
    remat: Literal["none", "full", "save", "offload"] = (
        "full"  # what of a layer is kept for the backward pass; see remat_names
    )
    # Kept by "save" here, by "offload" on the host, but for "attn_out" of cuDNN's kernel, which
    # "offload" computes again.
    remat_names: tuple[RematName, ...] = ("query", "key", "value", "attn_out")
    attention: AttentionKernel = (
        "auto"  # splash on TPU, cuDNN on GPU in bf16, else XLA; interpreted splash: anywhere, slow
    )
    rules: ShardingRules = ShardingRules()  # which mesh axes each logical axis is cut over
    loss_chunks: int = (
        1  # parts of the vocabulary (in RL of a row's tokens) for the loss: fewer logits at a time
    )
    # layers unrolled in the scan; with all of them (0) a CPU is about twice as fast, an H200 by 6 %
    unroll: int = 1

    def __post_init__(self) -> None:
        if self.loss_chunks <= 0:
            raise ConfigError(f"loss_chunks={self.loss_chunks} must be positive")
        if self.unroll < 0:
            raise ConfigError(f"unroll={self.unroll} must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    run_dir: str
    stages: tuple[StageConfig, ...]
    seed: int = 0
    model: ModelConfig = ModelConfig()
    initial: InitialWeights = InitialWeights()
    # a folder (tokenizer.json, or vocab.json and merges.txt), or "bytes"; None: that of
    # initial.model
    tokenizer: str | None = None
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every_steps: int = 10
    # "10:15" writes a profile of steps 10 to 15, counted over all stages, to run_dir/profile
    profile_steps: str | None = None
    max_consecutive_skips: int = (
        20  # steps in a row whose loss or gradient is not finite; one more ends the run
    )

    def __post_init__(self) -> None:
        check_not_empty(self, "tokenizer", "profile_steps")
        expand_paths(self, "run_dir", "tokenizer")
        if not self.run_dir:
            raise ConfigError("run_dir is empty: name the folder that the run is to make")
        for name, path in (
            ("run_dir", self.run_dir),
            ("tokenizer", self.tokenizer),
            ("initial.model", self.initial.model),
        ):
            if path is not None and "://" in path:
                raise ConfigError(
                    f"{name}={format_value(path)} is an address: mount the bucket, and give the path of its folder there"
                )
        if not self.stages:
            raise ConfigError("stages is empty: nothing to run")
        check_seed(self.seed)
        if self.log_every_steps <= 0:
            raise ConfigError(f"log_every_steps={self.log_every_steps} must be positive")
        if self.max_consecutive_skips < 0:
            raise ConfigError(
                f"max_consecutive_skips={self.max_consecutive_skips} must not be negative"
            )
        profiled = self.profiled_steps()
        if profiled is not None and not 1 <= profiled[0] <= profiled[1]:
            raise ConfigError(
                f"profile_steps={self.profile_steps!r} must be FIRST:LAST, steps counted from 1"
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ConfigError(f"stages must have different names, got {names}")
        for stage in self.stages:
            if not isinstance(stage.objective, PolicyGradient):
                continue
            if stage.data.seq_len % self.compute.loss_chunks:
                raise ConfigError(
                    f"stage {stage.name!r}: data.seq_len={stage.data.seq_len} must be a multiple of "
                    f"compute.loss_chunks={self.compute.loss_chunks}, into which policy_gradient "
                    "cuts the tokens of a row"
                )

    def profiled_steps(self) -> tuple[int, int] | None:
        """First and last step of the profile that `profile_steps` asks for, or None."""
        if self.profile_steps is None:
            return None
        match = re.fullmatch(r"(\d+):(\d+)", self.profile_steps)
        if match is None:
            raise ConfigError(
                f"profile_steps={self.profile_steps!r} must be FIRST:LAST, steps counted from 1"
            )
        return int(match[1]), int(match[2])
