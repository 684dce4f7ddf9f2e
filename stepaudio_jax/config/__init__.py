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
from stepaudio_jax.config.parallel import MESH_AXES, MeshAxis, MeshConfig, Rules
from stepaudio_jax.config.resolve import ConfigError, build, to_dict
from stepaudio_jax.config.run import (
    Activation,
    AttentionKernel,
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
    "MESH_AXES",
    "Activation",
    "AdaptorConfig",
    "AttentionKernel",
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
    "MeshAxis",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Part",
    "Rules",
    "SourceConfig",
    "StageConfig",
    "build",
    "load_config",
    "override",
    "to_dict",
]
