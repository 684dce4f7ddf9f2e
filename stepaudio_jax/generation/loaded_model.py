"""A model in memory, ready to answer: its weights, its tokenizer, and how it is computed."""

import dataclasses
import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from stepaudio_jax import hub
from stepaudio_jax.config import (
    AudioChannel,
    ComputeConfig,
    DataConfig,
    FloatDtype,
    LengthConvention,
    ModelConfig,
)
from stepaudio_jax.data import Record
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.errors import AudioError, DataError, GenerationError, TextError
from stepaudio_jax.generation.engine import Engine
from stepaudio_jax.generation.prompts import AudioReader, Prompt, build_prompt, check_prompt_fits
from stepaudio_jax.generation.sampling import Sampling
from stepaudio_jax.generation.shardings import bucketed_slot_tokens, decode_mesh, round_up_slots
from stepaudio_jax.models import (
    CacheDtype,
    Parameters,
    abstract_lora,
    abstract_parameters,
    attach_lora,
    extract_lora,
    logical_axes,
    quantize_weights,
    unstack_layers,
)
from stepaudio_jax.parallel import parameter_shardings
from stepaudio_jax.storage import DiskCache, PathLike, expand_home
from stepaudio_jax.text import AudioPart, Tokenizer, render_prompt


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer.

    Attributes:
        folder: the folder that it was read from.
        config: the model's shape.
        parameters: the parameter tree.
        tokenizer: the model's tokenizer.
        compute: dtypes, kernels and sharding rules of the computation.
        int8_weights: whether the decoder's matrices are in int8.
        mesh: the devices that hold the weights; None for one device.
        history_reasoning, history_eot: how past turns of a dialogue are rendered; see
            `render_prompt`.
        channel: which channel of a multichannel clip is used; see `load_audio`.
        allow_urls: whether clips may be URLs.
        clip_cache: where clips are kept that do not lie on this machine; see `data.clips`.
    """

    folder: str
    config: ModelConfig
    parameters: Parameters
    tokenizer: Tokenizer
    compute: ComputeConfig
    int8_weights: bool = False
    mesh: Mesh | None = None
    history_reasoning: bool = False
    history_eot: bool = True
    channel: AudioChannel = DataConfig.channel
    allow_urls: bool = DataConfig.allow_urls
    clip_cache: DiskCache | None = None

    def read_clip(
        self, part: AudioPart, /, *, length_convention: LengthConvention, channel: AudioChannel
    ) -> NDArray[np.float32]:
        """Reads a clip as `data.clips.load_clip` does, URLs only if the model may."""
        return load_clip(
            part,
            length_convention=length_convention,
            channel=channel,
            allow_urls=self.allow_urls,
            cache=self.clip_cache,
        )


def load_model(
    folder: PathLike,
    dtype: FloatDtype | None = None,
    *,
    int8_weights: bool = False,
    mesh: Mesh | None = None,
    for_generation: bool = False,
    history_reasoning: bool = False,
    history_eot: bool = True,
    channel: AudioChannel = DataConfig.channel,
    allow_urls: bool = DataConfig.allow_urls,
    clip_cache: DiskCache | None = None,
) -> LoadedModel:
    """Loads a Hugging Face folder or a checkpoint of this project.

    Args:
        folder: either kind.
        dtype: dtype of weights and computation; None chooses as `default_dtype` does.
        int8_weights: keep the decoder's matrices in int8, for generation only.
        mesh: the devices that hold the weights, by the default sharding rules; each process reads
            its own part. None for one device.
        for_generation: lay out the decoder's layers as an engine has them, which then needs no
            second copy of the weights. Such a model cannot score.
        history_reasoning, history_eot, channel, allow_urls, clip_cache: see `LoadedModel`.

    Raises:
        CheckpointError: the folder holds no model, or an incomplete one.
    """
    folder = expand_home(os.fspath(folder))
    dtype = default_dtype(dtype)
    compute = ComputeConfig(dtype=dtype, param_dtype=dtype, remat="none")
    config = hub.read_model_config(folder)
    tokenizer = hub.load_tokenizer(folder)  # before the weights, which take longer
    shardings = None
    if mesh is not None:
        shardings = parameter_shardings(
            logical_axes(config), abstract_parameters(config, compute), compute.rules, mesh
        )
    adapter = hub.read_source_adapter(folder)
    # Merging into fp32 weights loses nothing. Into coarser ones much of the adapter would be
    # rounded away, so there it stays beside them.
    keep_separate = adapter is not None and (dtype != "float32" or int8_weights)
    parameters = hub.read_parameters(
        folder, dtype=dtype, shardings=shardings, merge_adapter=not keep_separate
    )
    if int8_weights:
        parameters = quantize_weights(config, parameters, donate=True)
    if adapter is not None and keep_separate:
        matrices = _place_lora_matrices(adapter, config, compute, mesh)
        parameters["decoder"] = attach_lora(parameters["decoder"], matrices, adapter.lora.scale)
    if for_generation:
        parameters = unstack_layers(parameters, donate=True)
    return LoadedModel(
        folder,
        config,
        parameters,
        tokenizer,
        compute,
        int8_weights,
        mesh,
        history_reasoning,
        history_eot,
        channel,
        allow_urls,
        clip_cache,
    )


def with_adapter(model: LoadedModel, folder: PathLike) -> LoadedModel:
    """Returns a model with a LoRA adapter beside its kernels, which the two share.

    Args:
        model: loaded `for_generation`, without an adapter.
        folder: of the adapter, as PEFT writes it.

    Raises:
        CheckpointError: the folder holds no adapter for this model.
        GenerationError: the model has an adapter beside its weights already.
    """
    layers = model.parameters["decoder"]["layers"]
    if extract_lora(layers[0]):
        raise GenerationError(
            f"{model.folder} keeps an adapter beside its weights; merge it into them before another"
            " is added"
        )
    adapter = hub.read_adapter(folder, model.config.decoder)
    matrices = _place_lora_matrices(adapter, model.config, model.compute, model.mesh)
    adapted = tuple(
        attach_lora(
            {"layers": layer},
            jax.tree.map(lambda stack, index=index: stack[index], matrices),
            adapter.lora.scale,
        )["layers"]
        for index, layer in enumerate(layers)
    )
    decoder = {**model.parameters["decoder"], "layers": adapted}
    return dataclasses.replace(
        model, folder=os.fspath(folder), parameters={**model.parameters, "decoder": decoder}
    )


def default_dtype(dtype: FloatDtype | None) -> FloatDtype:
    """Returns `dtype`, or if it is None bfloat16; on a CPU float32, which is faster there."""
    return dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


def folder_decode_mesh(folder: PathLike, tensor: int = 0) -> Mesh | None:
    """Returns the mesh of all devices for the model of a folder; None where there is one device.

    Args:
        folder: the model's folder.
        tensor: devices over which each layer's heads are sharded; 0 for as many as divide them.
            The remaining devices hold replicas.

    Raises:
        ConfigError: `tensor` does not divide the number of devices.
        CheckpointError: the folder holds no model.
    """
    if len(jax.devices()) == 1 and tensor in (0, 1):
        return None
    return decode_mesh(hub.read_model_config(expand_home(os.fspath(folder))), tensor=tensor)


def build_engine(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    new_tokens: int,
    *,
    slots: int,
    cache_dtype: CacheDtype | None = None,
) -> Engine:
    """Builds an engine just large enough for these prompts and up to `new_tokens` new tokens each.

    Args:
        model: the model whose weights it uses.
        prompts: one prompt or more.
        new_tokens: tokens of the longest reply.
        slots: requests answered side by side; rounded up to a multiple of the mesh's replicas.
        cache_dtype: dtype of keys and values; None for that of the computation.
    """
    longest = max(prompt.length for prompt in prompts) + new_tokens
    return Engine(
        model.config,
        model.parameters,
        model.tokenizer,
        compute=model.compute,
        slots=round_up_slots(slots, model.compute.rules, model.mesh),
        slot_tokens=bucketed_slot_tokens(longest, model.config),
        cache_dtype=cache_dtype,
        mesh=model.mesh,
    )


def build_record_prompt(
    model: LoadedModel, record: Record, *, read: AudioReader | None = None
) -> Prompt:
    """Builds the prompt of a record's dialogue, reading its clips through `read`.

    Raises:
        DataError: the dialogue or a clip cannot be used; names the record's file and line.
    """
    try:
        segments = render_prompt(
            record.messages,
            model.tokenizer,
            history_eot=model.history_eot,
            history_reasoning=model.history_reasoning,
        )
        return build_prompt(
            segments,
            model.tokenizer,
            model.config.length_convention,
            channel=model.channel,
            read=read or model.read_clip,
        )
    except (AudioError, TextError) as error:
        raise DataError(f"{record.origin}: {error}") from None


def check_record_fits(
    model: LoadedModel, record: Record, prompt: Prompt, sampling: Sampling
) -> None:
    """Checks that the model's positions hold a prompt and the reply that may follow it.

    Raises:
        GenerationError: they do not; names the record's file and line.
    """
    try:
        check_prompt_fits(prompt, model.config, new_tokens=sampling.max_new_tokens)
    except GenerationError as error:
        raise GenerationError(f"{record.origin}: {error}") from None


def _place_lora_matrices(
    adapter: hub.Adapter, config: ModelConfig, compute: ComputeConfig, mesh: Mesh | None
) -> Parameters:
    """Returns an adapter's matrices, in fp32, on the devices that hold the weights."""
    if mesh is None:
        on_device: Parameters = jax.device_put(adapter.matrices)
        return on_device
    tree = abstract_lora(config, adapter.lora)
    shardings = parameter_shardings(tree.axes, tree.shapes, compute.rules, mesh)
    sharded: Parameters = jax.jit(lambda matrices: matrices, out_shardings=shardings)(
        adapter.matrices
    )
    return sharded
