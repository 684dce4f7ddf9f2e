"""The model a run starts from: its shape, its tokenizer, its weights."""

import pathlib

import jax
import numpy as np
from jax.sharding import Mesh

from stepaudio_jax import hub
from stepaudio_jax.config import Config, ConfigError, LoRAConfig, ModelConfig, Part
from stepaudio_jax.models import (
    Parameters,
    abstract_lora,
    abstract_parameters,
    init_parameters,
    logical_axes,
)
from stepaudio_jax.parallel import parameter_shardings
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.start import INITIAL_ADAPTER, read_stage_adapter
from stepaudio_jax.training.step import FROZEN_LORA


def initial_model(config: Config) -> tuple[ModelConfig, Tokenizer]:
    """The shape of the model, as the folders that `config.initial` names say where it names any, and the tokenizer.

    Raises:
        ConfigError: neither `initial` nor `tokenizer` says which tokenizer to use.
        CheckpointError: a folder cannot be read, or the model's vocabulary has no rows for what the
            tokenizer writes.
    """
    sources = _sources(config)
    model = hub.read_model_config(sources) if sources else config.model
    tokenizer = _tokenizer(config)
    hub.check_vocab_size(tokenizer, model.decoder.vocab_size)
    return model, tokenizer


def initial_adapter(config: Config) -> LoRAConfig | None:
    """Returns rank, alpha and targets of the adapter that the run's initial decoder has beside it, if any.

    Raises:
        CheckpointError: its folder cannot be read.
    """
    return hub.source_lora_config(_sources(config))


def check_stage_adapter(config: Config, index: int, model: ModelConfig) -> None:
    """Checks the adapter that `lora.adapter` of a stage names, before anything is written.

    Raises:
        CheckpointError: it cannot be read, or does not fit the model.
        ConfigError: it is not of the stage's form, or the initial weights have the very same one
            beside them already.
    """
    adapter = read_stage_adapter(config, index, model)
    beside = hub.read_source_adapter(_sources(config))
    if beside is None or beside.lora != adapter.lora:
        return
    if jax.tree.all(jax.tree.map(np.array_equal, beside.matrices, adapter.matrices)):
        stage = config.stages[index]
        folder = config.initial.decoder or config.initial.model
        raise ConfigError(
            f"stages.{stage.name}.lora.adapter={stage.lora.adapter!r} is beside the decoder of {folder} already, "
            f"and would count twice: to go on with it, start from the model without it ({beside.base or 'its base'})"
        )


def initial_weights(config: Config, model: ModelConfig, mesh: Mesh) -> Parameters:
    """Reads or draws the weights that `config.initial` asks for, each device its own part.

    What a stage trains is in `compute.param_dtype`, what none does in `compute.dtype`. An adapter
    beside the decoder is under FROZEN_LORA, in fp32.

    Parts that no folder gives are drawn from `config.seed`: all of them for a run from nothing, the
    adaptor where encoder and decoder come from folders of their own.

    Raises:
        CheckpointError: a folder is incomplete.
        ShardingError: the rules cannot place a parameter on the mesh.
    """
    shardings = parameter_shardings(
        logical_axes(model), abstract_parameters(model), config.compute.rules, mesh
    )
    trained = {part for stage in config.stages for part in stage.trainable}
    sources = _sources(config)
    parameters: Parameters = {}
    if sources:
        compute = config.compute
        dtypes: dict[Part, str] = {
            part: compute.param_dtype if part in trained else compute.dtype for part in sources
        }
        parameters = hub.read_parameters(
            sources, config=model, dtype=dtypes, shardings=shardings, merge_adapter=False
        )
        adapter = hub.read_source_adapter(sources)
        if adapter is not None:
            tree = abstract_lora(model, adapter.lora)
            places = parameter_shardings(tree.axes, tree.shapes, compute.rules, mesh)
            placed = jax.jit(lambda matrices: matrices, out_shardings=places)(adapter.matrices)
            parameters[FROZEN_LORA] = {INITIAL_ADAPTER: placed}
    if missing := shardings.keys() - parameters.keys():
        key = jax.random.key(config.seed)
        parameters |= init_parameters(
            model, key, config.compute, shardings=shardings, parts=missing
        )
    return parameters


def _sources(config: Config) -> dict[Part, pathlib.Path]:
    initial = config.initial
    return hub.weight_sources(initial.model, encoder=initial.encoder, decoder=initial.decoder)


def _tokenizer(config: Config) -> Tokenizer:
    if config.tokenizer == "bytes":
        return Tokenizer.byte_level()
    folder = config.tokenizer or config.initial.model or config.initial.decoder
    if not folder:
        raise ConfigError(
            'tokenizer is empty, and there is no initial.model to take one from: name a folder, or "bytes"'
        )
    return hub.load_tokenizer(folder)
