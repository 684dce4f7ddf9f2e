"""A teacher: another model on the same mesh, whose distributions a stage learns."""

import dataclasses
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from stepaudio_jax import hub
from stepaudio_jax.config import Config, ModelConfig, TeacherInputs
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.models import (
    Parameters,
    StepAudio,
    abstract_model,
    abstract_parameters,
    logical_axes,
)
from stepaudio_jax.parallel import parameter_shardings
from stepaudio_jax.text import Tokenizer


@dataclasses.dataclass(frozen=True)
class TeacherDef:
    """The static side of a teacher.

    Attributes:
        config: its shape.
        graphdef: what `merge` needs with its parameters.
        folder: where its weights are.
    """

    config: ModelConfig
    graphdef: Any
    folder: str

    def merge(self, params: Parameters) -> StepAudio:
        """Returns the model with its parameters."""
        model: StepAudio = nnx.merge(self.graphdef, params)
        return model


def define_teacher(
    config: Config,
    folder: str,
    model: ModelConfig,
    tokenizer: Tokenizer | None = None,
    *,
    inputs: TeacherInputs = "audio",
) -> TeacherDef:
    """Reads the shape of a teacher and checks that the policy can learn from it.

    Args:
        config: of the run; its `compute` is the teacher's too.
        folder: of the teacher.
        model: shape of the policy.
        tokenizer: the policy's, to be compared with the teacher's; None does not.
        inputs: what the teacher is given of a clip.

    Raises:
        CheckpointError: the folder holds no model.
        ConfigError: their vocabularies differ, or the front ends of two that hear.
    """
    teacher = hub.read_model_config(hub.weight_sources(folder))
    for name, ours, theirs, is_of_sound in (
        ("decoder.vocab_size", model.decoder.vocab_size, teacher.decoder.vocab_size, False),
        ("encoder.mel_bins", model.encoder.mel_bins, teacher.encoder.mel_bins, True),
        ("length_convention", model.length_convention, teacher.length_convention, True),
    ):
        if ours != theirs and not (is_of_sound and inputs == "transcripts"):
            raise ConfigError(
                f"objective.teacher={folder!r} has {name}={theirs}, and the policy {ours}: a "
                "teacher's must be the same"
            )
    if (
        tokenizer is not None
        and hub.load_tokenizer(folder).fingerprint() != tokenizer.fingerprint()
    ):
        raise ConfigError(
            f"objective.teacher={folder!r} has another tokenizer than the policy: its tokens mean "
            "something else"
        )
    return TeacherDef(teacher, abstract_model(teacher, config.compute)[0], folder)


def read_teacher(config: Config, teacher: TeacherDef, mesh: Mesh) -> Parameters:
    """Reads a teacher's parameters in the compute dtype, sharded over the mesh.

    An adapter beside it is merged.

    Raises:
        CheckpointError: a file cannot be read.
        ConfigError: the rules cannot place a parameter on the mesh.
    """
    shardings = teacher_shardings(config, teacher, mesh)
    return hub.read_parameters(
        teacher.folder,
        config=teacher.config,
        dtype=config.compute.dtype,
        shardings=shardings,
    )


def teacher_shardings(config: Config, teacher: TeacherDef, mesh: Mesh) -> Parameters:
    """Returns the sharding of each of a teacher's parameters."""
    shapes = abstract_parameters(teacher.config)
    return parameter_shardings(logical_axes(teacher.config), shapes, config.compute.rules, mesh)
