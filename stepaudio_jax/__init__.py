"""stepaudio_jax: train, align and run audio reasoning models in JAX.

    import stepaudio_jax as sa

    model = sa.load("models/tiny_base")
    print(model.chat(["question.wav", "Who is speaking?"]).text)

A name below is imported when it is first used: importing the package starts neither JAX nor a
device, so that environment variables and flags can still be set afterwards. On a
machine without TPUs it sets TPU_ACCELERATOR_TYPE and TPU_WORKER_HOSTNAMES where they are not set,
which keeps an installed TPU compiler silent.
"""

import importlib
from typing import TYPE_CHECKING, Any

from stepaudio_jax.tpu_compiler import set_tpu_environment

if TYPE_CHECKING:
    from stepaudio_jax._front_door import Evaluation, convert, evaluate, train
    from stepaudio_jax.config import (
        AugmentationConfig,
        AuxiliaryConfig,
        CheckpointConfig,
        ComputeConfig,
        Config,
        DataConfig,
        Distillation,
        EvaluationConfig,
        InitialWeights,
        JudgeConfig,
        LoRAConfig,
        MeshConfig,
        ModelConfig,
        NextToken,
        OptimizerConfig,
        PolicyGradient,
        Preference,
        RepetitionDetectionConfig,
        RewardConfig,
        RolloutConfig,
        ShardingRules,
        SimulatedUserConfig,
        SourceConfig,
        StageConfig,
        TeacherEndpointConfig,
        load_config,
        override,
    )
    from stepaudio_jax.errors import RunError, StepAudioError
    from stepaudio_jax.generation.chat import ChatModel, Reply, load
    from stepaudio_jax.generation.sampling import Sampling
    from stepaudio_jax.generation.scoring import TurnScore

__all__ = [
    "AugmentationConfig",
    "AuxiliaryConfig",
    "ChatModel",
    "CheckpointConfig",
    "ComputeConfig",
    "Config",
    "DataConfig",
    "Distillation",
    "Evaluation",
    "EvaluationConfig",
    "InitialWeights",
    "JudgeConfig",
    "LoRAConfig",
    "MeshConfig",
    "ModelConfig",
    "NextToken",
    "OptimizerConfig",
    "PolicyGradient",
    "Preference",
    "RepetitionDetectionConfig",
    "Reply",
    "RewardConfig",
    "RolloutConfig",
    "RunError",
    "Sampling",
    "ShardingRules",
    "SimulatedUserConfig",
    "SourceConfig",
    "StageConfig",
    "StepAudioError",
    "TeacherEndpointConfig",
    "TurnScore",
    "convert",
    "evaluate",
    "load",
    "load_config",
    "override",
    "train",
]

# Where each name comes from; all others are parts of the configuration.
_MODULES = {
    "ChatModel": "stepaudio_jax.generation.chat",
    "Evaluation": "stepaudio_jax._front_door",
    "Reply": "stepaudio_jax.generation.chat",
    "RunError": "stepaudio_jax.errors",
    "Sampling": "stepaudio_jax.generation.sampling",
    "StepAudioError": "stepaudio_jax.errors",
    "TurnScore": "stepaudio_jax.generation.scoring",
    "convert": "stepaudio_jax._front_door",
    "evaluate": "stepaudio_jax._front_door",
    "load": "stepaudio_jax.generation.chat",
    "train": "stepaudio_jax._front_door",
}
_CONFIG_MODULE = "stepaudio_jax.config"

set_tpu_environment()


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562).

    Raises:
        AttributeError: the package has no such name; names the nearest one.
    """
    if name not in __all__:
        from stepaudio_jax.storage.messages import did_you_mean

        hint = did_you_mean(name, __all__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module(_MODULES.get(name, _CONFIG_MODULE)), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
