"""Typed, frozen configuration. Every default of a run stands in this package, once."""

from stepaudio_jax.config.build import build, to_dict
from stepaudio_jax.config.checks import check_seed
from stepaudio_jax.config.data import (
    AudioChannel,
    AugmentationConfig,
    DataConfig,
    OnTooLong,
    SourceConfig,
)
from stepaudio_jax.config.distillation import Distillation
from stepaudio_jax.config.flags import load_config, override, split_flags
from stepaudio_jax.config.model import (
    AdaptorConfig,
    DecoderConfig,
    EncoderConfig,
    FloatDtype,
    LengthConvention,
    ModelConfig,
)
from stepaudio_jax.config.objectives import (
    AdvantageEstimator,
    Aggregation,
    AuxiliaryConfig,
    NextToken,
    PolicyGradient,
    RepetitionDetectionConfig,
    RolloutConfig,
)
from stepaudio_jax.config.preference import Preference, PreferenceLoss
from stepaudio_jax.config.rewards import (
    JudgeConfig,
    JudgeInputs,
    RewardConfig,
    RubricUse,
    check_reward_map,
)
from stepaudio_jax.config.run import (
    AttentionKernel,
    CheckpointConfig,
    ComputeConfig,
    Config,
    InitialWeights,
    RematName,
)
from stepaudio_jax.config.sharding import MESH_AXES, MeshAxis, MeshConfig, ShardingRules
from stepaudio_jax.config.simulated_user import SimulatedUserConfig
from stepaudio_jax.config.stage import (
    EvaluationConfig,
    LoRAConfig,
    OptimizerConfig,
    Part,
    StageConfig,
)
from stepaudio_jax.config.teacher import TeacherEndpointConfig, TeacherInputs

__all__ = [
    "MESH_AXES",
    "AdaptorConfig",
    "AdvantageEstimator",
    "Aggregation",
    "AttentionKernel",
    "AudioChannel",
    "AugmentationConfig",
    "AuxiliaryConfig",
    "CheckpointConfig",
    "ComputeConfig",
    "Config",
    "DataConfig",
    "DecoderConfig",
    "Distillation",
    "EncoderConfig",
    "EvaluationConfig",
    "FloatDtype",
    "InitialWeights",
    "JudgeConfig",
    "JudgeInputs",
    "LengthConvention",
    "LoRAConfig",
    "MeshAxis",
    "MeshConfig",
    "ModelConfig",
    "NextToken",
    "OnTooLong",
    "OptimizerConfig",
    "Part",
    "PolicyGradient",
    "Preference",
    "PreferenceLoss",
    "RematName",
    "RepetitionDetectionConfig",
    "RewardConfig",
    "RolloutConfig",
    "RubricUse",
    "ShardingRules",
    "SimulatedUserConfig",
    "SourceConfig",
    "StageConfig",
    "TeacherEndpointConfig",
    "TeacherInputs",
    "build",
    "check_reward_map",
    "check_seed",
    "load_config",
    "override",
    "split_flags",
    "to_dict",
]
