"""Typed, frozen configuration. Every default of the project stands in this package, once."""

from stepaudio_jax.config.command_line import load_config, override
from stepaudio_jax.config.model import (
    AdaptorConfig,
    DecoderConfig,
    EncoderConfig,
    FloatDtype,
    LengthConvention,
    ModelConfig,
)
from stepaudio_jax.config.resolve import ConfigError, build, to_dict
from stepaudio_jax.config.run import (
    AugmentationConfig,
    AuxiliaryConfig,
    CheckpointConfig,
    ComputeConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    InitialWeights,
    OptimizerConfig,
    Part,
    SourceConfig,
    StageConfig,
)

__all__ = [
    "AdaptorConfig",
    "AugmentationConfig",
    "AuxiliaryConfig",
    "CheckpointConfig",
    "ComputeConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DecoderConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FloatDtype",
    "InitialWeights",
    "LengthConvention",
    "ModelConfig",
    "OptimizerConfig",
    "Part",
    "SourceConfig",
    "StageConfig",
    "build",
    "load_config",
    "override",
    "to_dict",
]
