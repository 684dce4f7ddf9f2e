"""A whole run: where its weights come from, its stages, and how it is computed and saved."""

import dataclasses
import pathlib
import re
from typing import Literal

from stepaudio_jax.config.checks import (
    check_not_empty,
    check_not_negative,
    check_path,
    check_positive,
    check_seed,
    expand_paths,
)
from stepaudio_jax.config.model import FloatDtype, ModelConfig
from stepaudio_jax.config.objectives import NextToken
from stepaudio_jax.config.sharding import MeshConfig, ShardingRules
from stepaudio_jax.config.stage import StageConfig
from stepaudio_jax.errors import ConfigError

AttentionKernel = Literal["auto", "xla", "cudnn", "splash", "splash_interpreted"]
RematName = Literal["query", "key", "value", "attn_out", "attn_proj", "gate", "up"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Where the run's weights come from; parts that no folder gives are initialised at random."""

    model: str | None = None  # a checkpoint of this project, or a Hugging Face folder (Step-Audio)
    encoder: str | None = None  # a folder that overrides the encoder (Qwen2-Audio)
    decoder: str | None = None  # a folder that overrides the decoder (Qwen2, Qwen2.5)

    def __post_init__(self) -> None:
        check_not_empty(self, "model", "encoder", "decoder")
        expand_paths(self, "model", "encoder", "decoder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved, and which saved states are kept: those that any of the rules keeps.

    Frozen parameters are saved once a stage, so a checkpoint of LoRA holds the adapter and its
    moments only.
    """

    every_steps: int = 500  # between two saves; 0: only at the end of each stage
    keep: int = 2  # newest saved states that are kept
    keep_every_steps: int = 0  # besides, those at multiples of so many steps; 0: none
    # Besides, so many of the best by `best_metric`; a stage that does not measure it has none.
    keep_best: int = 0
    # Which are the best: "loss", those of lowest held-out loss; or a task, of its highest figure.
    best_metric: str = "loss"

    def __post_init__(self) -> None:
        check_not_negative(self, "every_steps", "keep_every_steps", "keep_best")
        if not self.best_metric:
            raise ConfigError("best_metric is empty; name a task, or 'loss'")
        check_positive(self, "keep")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How the model is computed, as opposed to what it is."""

    # Dtype of activations and matrix products; softmax, norms and losses are always in float32.
    dtype: FloatDtype = "bfloat16"
    param_dtype: FloatDtype = "float32"  # of trained parameters; frozen ones are kept in `dtype`
    # Dtype of the decoder's residual stream; None: `dtype`. In bfloat16 it is rounded twice a
    # layer, which adds to the difference between the log-probabilities of sampling and of training.
    residual_dtype: FloatDtype | None = None
    # Activations of a layer kept for the backward pass: all ("none"), none ("full"), or those of
    # remat_names ("save": on the device, "offload": on the host).
    remat: Literal["none", "full", "save", "offload"] = "full"
    # Kept by "save" and "offload"; but "offload" computes "attn_out" of cuDNN's kernel again.
    remat_names: tuple[RematName, ...] = ("query", "key", "value", "attn_out")
    # "auto": splash on TPU, cuDNN on GPU in bfloat16, else XLA. "splash_interpreted" runs anywhere,
    # slowly.
    attention: AttentionKernel = "auto"
    rules: ShardingRules = ShardingRules()  # which mesh axes shard each logical axis
    # Parts of the vocabulary (with other objectives than next_token, of a row's tokens) that the
    # loss takes one after the other, so that fewer logits exist at a time.
    loss_chunks: int = 1
    # Layers unrolled in the scan; 0: all of them, about twice as fast on a CPU, 6 % on an H200.
    unroll: int = 1

    def __post_init__(self) -> None:
        check_positive(self, "loss_chunks")
        check_not_negative(self, "unroll")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    run_dir: str  # the folder that the run makes
    stages: tuple[StageConfig, ...]  # in order; each starts from what the one before left
    seed: int = 0  # decides initial weights, data order, augmentation and sampling
    model: ModelConfig = ModelConfig()  # the model's shape, where no folder gives it
    initial: InitialWeights = InitialWeights()  # where the weights come from
    # A folder (tokenizer.json, or vocab.json and merges.txt), or "bytes"; None: initial.model's.
    tokenizer: str | None = None
    compute: ComputeConfig = ComputeConfig()  # dtypes, rematerialisation, kernels
    mesh: MeshConfig = MeshConfig()  # devices along each axis
    checkpoint: CheckpointConfig = CheckpointConfig()  # when the state is saved
    # Between two lines of metrics.jsonl, of means over these steps; None: 1 in stages whose policy
    # generates replies, 10 in others.
    log_every_steps: int | None = None
    # FIRST:LAST writes a profile of these steps to run_dir/profile; steps count over all stages.
    profile_steps: str | None = None
    # Steps in a row whose loss or gradient is not finite; one more ends the run.
    max_consecutive_skips: int = 20

    def __post_init__(self) -> None:
        check_not_empty(self, "tokenizer", "profile_steps")
        expand_paths(self, "run_dir", "tokenizer")
        if not self.run_dir:
            raise ConfigError("run_dir is empty: name the folder that the run is to make")
        for name, path in (
            ("run_dir", self.run_dir),
            ("tokenizer", self.tokenizer),
            ("initial.model", self.initial.model),
            ("initial.encoder", self.initial.encoder),
            ("initial.decoder", self.initial.decoder),
        ):
            check_path(name, path)
        if not self.stages:
            raise ConfigError("stages is empty: nothing to run")
        check_seed(self.seed)
        if self.log_every_steps is not None:
            check_positive(self, "log_every_steps")
        check_not_negative(self, "max_consecutive_skips")
        profiled = self.profiled_steps()
        if profiled is not None and not 1 <= profiled[0] <= profiled[1]:
            raise self._profile_steps_error()
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ConfigError(f"stages must have different names, got {names}")
        if self.checkpoint.keep_best:
            self._check_best_is_measured()
        for stage in self.stages:
            if isinstance(stage.objective, NextToken):
                continue  # its loss splits the vocabulary
            for key, data in (("data", stage.data), ("evaluation.data", stage.evaluation.data)):
                if data.sources and data.seq_len % self.compute.loss_chunks:
                    raise ConfigError(
                        f"stage {stage.name!r}: {key}.seq_len={data.seq_len} must be a multiple "
                        f"of compute.loss_chunks={self.compute.loss_chunks}, into which "
                        f"{stage.objective.name} splits the tokens of a row"
                    )

    def _check_best_is_measured(self) -> None:
        """Checks that some stage measures what `checkpoint.keep_best` goes by."""
        metric, kept = self.checkpoint.best_metric, self.checkpoint.keep_best
        if metric == "loss":
            if not any(stage.evaluation.enabled for stage in self.stages):
                raise ConfigError(
                    f"checkpoint.keep_best={kept} keeps the saved states with the lowest held-out "
                    "loss, which no stage measures: set evaluation.data of a stage, or leave "
                    "keep_best out"
                )
            return
        if metric == "recognition":
            raise ConfigError(
                "checkpoint.best_metric='recognition' counts errors, and the highest figure is"
                " kept: name another task, or 'loss'"
            )
        tasks = {
            pathlib.PurePath(entry.partition("=")[0]).stem
            for stage in self.stages
            for entry in stage.evaluation.tasks
        }
        if metric not in tasks:
            raise ConfigError(
                f"checkpoint.best_metric={metric!r} is no task that a stage measures (measured: "
                f"{', '.join(sorted(tasks)) or 'none'}): add it to evaluation.tasks of a stage, or "
                "name 'loss'"
            )

    def steps_per_log_line(self, stage: StageConfig) -> int:
        """Returns the number of steps of a stage between two lines of metrics.jsonl."""
        if self.log_every_steps is not None:
            return self.log_every_steps
        return 1 if stage.has_rollouts else 10

    def profiled_steps(self) -> tuple[int, int] | None:
        """Returns the first and last step that `profile_steps` asks for; None without a profile."""
        if self.profile_steps is None:
            return None
        match = re.fullmatch(r"(\d+):(\d+)", self.profile_steps)
        if match is None:
            raise self._profile_steps_error()
        return int(match[1]), int(match[2])

    def _profile_steps_error(self) -> ConfigError:
        return ConfigError(
            f"profile_steps={self.profile_steps!r} must be FIRST:LAST, steps counted from 1"
        )
