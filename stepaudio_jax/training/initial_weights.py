"""The model a run starts from: its shape, tokenizer and weights, and the adapters beside them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stepaudio_jax import hub
from stepaudio_jax.config import Config, LoRAConfig, ModelConfig, Part
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.models import (
    Parameters,
    abstract_lora,
    abstract_parameters,
    combine_lora,
    init_parameters,
    logical_axes,
    merge_lora,
)
from stepaudio_jax.parallel import parameter_shardings
from stepaudio_jax.storage import Path
from stepaudio_jax.text import Tokenizer

# Names, among adapters, the one that came with the initial weights; no stage can have this name.
INITIAL_ADAPTER = "@initial"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelParams:
    """The parameters that go from stage to stage: those of the model, without heads or optimizer.

    Attributes:
        params: "encoder", "adaptor", "decoder".
        lora_params: the adapters beside the decoder, by the stage that left them, in order.
    """

    params: Parameters = dataclasses.field(default_factory=dict)
    lora_params: dict[str, Parameters] = dataclasses.field(default_factory=dict)

    def clear(self) -> None:
        """Lets all arrays go, so that those that a train state does not hold are freed."""
        self.params.clear()
        self.lora_params.clear()


def initial_model(config: Config) -> tuple[ModelConfig, Tokenizer]:
    """Returns the model's shape, read from the folders in `config.initial` if any, and tokenizer.

    Raises:
        ConfigError: neither `initial` nor `tokenizer` says which tokenizer to use.
        CheckpointError: a folder cannot be read, or the model's vocabulary has no rows for tokens
            of the tokenizer.
    """
    sources = _sources(config)
    model = hub.read_model_config(sources) if sources else config.model
    tokenizer = _tokenizer(config)
    hub.check_vocab_size(tokenizer, model.decoder.vocab_size)
    return model, tokenizer


def initial_weights(config: Config, model: ModelConfig, mesh: Mesh) -> ModelParams:
    """Reads or draws the weights that `config.initial` asks for; each device gets its own shards.

    Parts that some stage trains are in `compute.param_dtype`, others in `compute.dtype`, the
    adapter beside the decoder in fp32. Parts that no folder has are drawn from `config.seed`: all
    of them in a run from scratch, the adaptor where encoder and decoder come from folders of their
    own.

    Raises:
        CheckpointError: a folder is incomplete.
        ConfigError: the rules cannot place a parameter on the mesh.
    """
    compute = config.compute
    shardings = parameter_shardings(
        logical_axes(model), abstract_parameters(model), compute.rules, mesh
    )
    sources = _sources(config)
    params: Parameters = {}
    lora_params = {}
    if sources:
        trained = {part for stage in config.stages for part in stage.trainable}
        dtypes: dict[Part, str] = {
            part: compute.param_dtype if part in trained else compute.dtype for part in sources
        }
        params = hub.read_parameters(
            sources, config=model, dtype=dtypes, shardings=shardings, merge_adapter=False
        )
        adapter = hub.read_source_adapter(sources)
        if adapter is not None:
            lora = abstract_lora(model, adapter.lora)
            lora_shardings = parameter_shardings(lora.axes, lora.shapes, compute.rules, mesh)
            place = jax.jit(lambda matrices: matrices, out_shardings=lora_shardings)
            lora_params[INITIAL_ADAPTER] = place(adapter.matrices)
    missing = shardings.keys() - params.keys()
    if missing:
        key = jax.random.key(config.seed)
        params |= init_parameters(model, key, compute, shardings=shardings, parts=missing)
    return ModelParams(params, lora_params)


def initial_adapter(config: Config) -> LoRAConfig | None:
    """Returns rank, alpha and targets of the adapter beside the run's initial decoder, if any.

    Raises:
        CheckpointError: its folder cannot be read.
    """
    return hub.source_lora_config(_sources(config))


def adapters_before_stage(
    config: Config, index: int, initial: LoRAConfig | None
) -> dict[str, LoRAConfig]:
    """Returns the adapters beside the decoder when a stage begins, by the stage that left them.

    A stage that trains the decoder itself begins by merging them into it, and leaves none.

    Args:
        config: the run's configuration.
        index: of the stage; the number of stages for what the run leaves.
        initial: settings of the adapter beside the initial weights, if any.
    """
    adapters = {} if initial is None else {INITIAL_ADAPTER: initial}
    for stage in config.stages[:index]:
        if "decoder" in stage.trainable:
            adapters = {}
        elif stage.lora.rank:
            adapters[stage.name] = stage.lora
    return adapters


def merge_adapters(
    params: ModelParams,
    scales: Sequence[tuple[str, float]],
    dtype: Any,
    *,
    donate: bool = False,
) -> Parameters:
    """Returns the model with its adapters' products added to the decoder's kernels in fp32.

    Args:
        params: of the model.
        scales: name and scale of each of its adapters, in order.
        dtype: of the adapted kernels then; bf16 rounds small products away.
        donate: give up the decoder's arrays: if they have this dtype already, no second decoder is
            allocated.
    """
    if not scales:
        return params.params
    decoder = params.params["decoder"]
    in_place = all(leaf.dtype == dtype for leaf in jax.tree.leaves(decoder))
    merge = _merge_lora_in_place if donate and in_place else _merge_lora
    combined = combine_lora([(params.lora_params[name], scale) for name, scale in scales])
    return params.params | {"decoder": merge(decoder, *combined, jnp.dtype(dtype))}


_merge_lora = jax.jit(merge_lora, static_argnums=(2, 3))
_merge_lora_in_place = jax.jit(merge_lora, static_argnums=(2, 3), donate_argnums=0)


def check_stage_adapter(config: Config, index: int, model: ModelConfig) -> None:
    """Checks the adapter that `lora.adapter` of a stage names, before anything is written.

    Raises:
        CheckpointError: it cannot be read, or does not fit the model.
        ConfigError: it has another rank, alpha or targets than the stage, or is beside the initial
            decoder already.
    """
    adapter = read_stage_adapter(config, index, model)
    initial = hub.read_source_adapter(_sources(config))
    if initial is None or initial.lora != adapter.lora:
        return
    if jax.tree.all(jax.tree.map(np.array_equal, initial.matrices, adapter.matrices)):
        stage = config.stages[index]
        folder = config.initial.decoder or config.initial.model
        raise ConfigError(
            f"stages.{stage.name}.lora.adapter={stage.lora.adapter!r} is beside the decoder of "
            f"{folder} already, and would count twice: to go on with it, start from the model "
            f"without it ({initial.base or 'its base'})"
        )


def read_stage_adapter(config: Config, index: int, model: ModelConfig) -> hub.Adapter:
    """Reads the adapter that `lora.adapter` of a stage names.

    Raises:
        CheckpointError: it cannot be read, or does not fit the model.
        ConfigError: it has another rank, alpha or targets than the stage.
    """
    stage = config.stages[index]
    lora, folder = stage.lora, stage.lora.adapter
    assert folder is not None
    adapter = hub.read_adapter(folder, model.decoder)
    wanted, stored = (
        {"rank": lora.rank, "alpha": lora.alpha, "targets": tuple(sorted(lora.targets))}
        for lora in (lora, adapter.lora)
    )
    differing = [name for name, value in wanted.items() if stored[name] != value]
    if differing:
        key = f"stages.{stage.name}.lora"
        settings = ", ".join(
            f"{key}.{name}={stored[name]!r} (not {wanted[name]!r})" for name in differing
        )
        raise ConfigError(
            f"{key}.adapter={folder!r} is of another form; to go on with it, set {settings}"
        )
    return adapter


def _sources(config: Config) -> dict[Part, Path]:
    initial = config.initial
    return hub.weight_sources(initial.model, encoder=initial.encoder, decoder=initial.decoder)


def _tokenizer(config: Config) -> Tokenizer:
    if config.tokenizer == "bytes":
        return Tokenizer.byte_level()
    folder = config.tokenizer or config.initial.model or config.initial.decoder
    if not folder:
        raise ConfigError(
            "tokenizer is None, and there is no initial.model to take one from: "
            'name a folder, or "bytes"'
        )
    return hub.load_tokenizer(folder)
