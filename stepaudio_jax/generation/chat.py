"""A model that is ready to answer; prompts of records; and from a file of dialogues to a file of scores."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from stepaudio_jax import hub
from stepaudio_jax.audio import load_audio
from stepaudio_jax.config import AudioChannel, ComputeConfig, DataConfig, FloatDtype, ModelConfig
from stepaudio_jax.data import Record, read_jsonl
from stepaudio_jax.errors import AudioError, DataError, GenerationError, TextError
from stepaudio_jax.generation.engine import Engine
from stepaudio_jax.generation.journal import Journal, check_output_paths, describe_job
from stepaudio_jax.generation.prompts import AudioReader, Prompt, build_prompt, check_prompt_fits
from stepaudio_jax.generation.sampling import Sampling
from stepaudio_jax.generation.scoring import Scorer
from stepaudio_jax.generation.shardings import bucketed_slot_tokens, decode_mesh, round_up_slots
from stepaudio_jax.models import (
    CacheDtype,
    Parameters,
    abstract_lora,
    abstract_parameters,
    attach_lora,
    logical_axes,
    quantize_weights,
    unstack_layers,
)
from stepaudio_jax.parallel import parameter_shardings
from stepaudio_jax.storage import PathLike, expand_home, is_finished_output_of
from stepaudio_jax.text import Tokenizer, render_prompt


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer.

    Attributes:
        folder: it comes from.
        config: its shape.
        parameters: its tree.
        tokenizer: of the model.
        compute: how it is computed.
        int8_weights: whether the decoder's matrices are in int8.
        mesh: where the weights lie; None for one device.
        history_reasoning, history_eot: how past turns of a dialogue are rendered; see
        `render_prompt`.
        channel: what it hears of a clip with several channels; see `load_audio`.
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


def folder_decode_mesh(folder: PathLike, tensor: int = 0) -> Mesh | None:
    """The mesh of all devices for the model of a folder, or None where there is one device.

    Args:
        folder: of the model.
        tensor: over how many devices heads are cut; 0 for as many as divide them. What remains
            holds weights of its own.

    Raises:
        ConfigError: `tensor` does not divide the number of devices.
        CheckpointError: the folder holds no model.
    """
    if len(jax.devices()) == 1 and tensor in (0, 1):
        return None
    return decode_mesh(hub.read_model_config(expand_home(os.fspath(folder))), tensor=tensor)


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
) -> LoadedModel:
    """Loads a Hugging Face folder or a checkpoint of this project.

    Args:
        folder: either kind.
        dtype: of weights and computation; by default see `default_dtype`.
        int8_weights: keep the decoder's matrices in int8, for generating only.
        mesh: where the weights lie, by the default rules; each process reads its own. None for one
        device.
        for_generation: keep the decoder's layers as an engine has them, which then needs no second
            copy of the weights. Such a model cannot score.
        history_reasoning, history_eot, channel: see `LoadedModel`.
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
    # Added to weights in fp32 an adapter loses nothing; beside others it stays, or much of it would
    # be rounded away.
    beside = adapter is not None and (dtype != "float32" or int8_weights)
    parameters = hub.read_parameters(
        folder, dtype=dtype, shardings=shardings, merge_adapter=not beside
    )
    if int8_weights:
        parameters = quantize_weights(config, parameters, donate=True)
    if adapter is not None and beside:
        matrices = _placed_matrices(adapter, config, compute, mesh)
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
    )


def _placed_matrices(
    adapter: hub.Adapter, config: ModelConfig, compute: ComputeConfig, mesh: Mesh | None
) -> Parameters:
    """Places an adapter's matrices, in fp32, where the weights lie."""
    if mesh is None:
        placed: Parameters = jax.device_put(adapter.matrices)
        return placed
    tree = abstract_lora(config, adapter.lora)
    shardings = parameter_shardings(tree.axes, tree.shapes, compute.rules, mesh)
    spread: Parameters = jax.jit(lambda matrices: matrices, out_shardings=shardings)(
        adapter.matrices
    )
    return spread


def build_engine(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    new_tokens: int,
    *,
    slots: int,
    cache_dtype: CacheDtype | None = None,
) -> Engine:
    """An engine no larger than it takes to answer these prompts, each with up to `new_tokens` tokens.

    It has `slots` slots, or a few more where the model's mesh shares them out.
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


def score_file(model: LoadedModel, input_path: PathLike, output_path: PathLike) -> int:
    """Scores every assistant turn of every dialogue of a JSONL file; returns the number of dialogues.

    A line of the output holds id and turns, each with token_ids and logprobs. Finished lines are
    kept in `OUTPUT.partial`: the same call goes on after an interruption. The output appears when
    it is complete, and replaces what was there.

    Raises:
        DataError: the file has no line, or one that cannot be used; names file and line. Nothing is
            written. Or there is a `OUTPUT.partial` of another job, or a damaged one.
        OutputError: the output is the input or a folder, or another job is writing it.
    """
    input_path, output_path = (expand_home(os.fspath(path)) for path in (input_path, output_path))
    check_output_paths(output_path, input_path)
    records = _read(input_path)
    job = _score_job(
        *(input_path, model.folder, model.config, model.compute.dtype),
        history_reasoning=model.history_reasoning,
        channel=model.channel,
    )
    scorer = Scorer(
        model.config,
        model.parameters,
        model.tokenizer,
        compute=model.compute,
        mesh=model.mesh,
        history_reasoning=model.history_reasoning,
        channel=model.channel,
    )
    journal = Journal(output_path, job, len(records))
    with contextlib.closing(journal):
        for index, record in enumerate(records):
            if index in journal:
                continue
            try:
                turns = scorer.score(record.messages)
            except (AudioError, TextError, GenerationError) as error:
                journal.discard()
                raise DataError(f"{record.origin}: {error}") from None
            journal.write(
                index, {"id": record.id, "turns": [dataclasses.asdict(turn) for turn in turns]}
            )
        journal.finish()
    return len(records)


def is_scoring_finished(
    folder: PathLike,
    input_path: PathLike,
    output_path: PathLike,
    dtype: FloatDtype | None = None,
    *,
    history_reasoning: bool = False,
    channel: AudioChannel = DataConfig.channel,
) -> bool:
    """Returns whether a job of `score_file` is finished already, its output being there; the model is not loaded.

    Raises:
        OutputError: the output is there, and not of this job.
    """
    folder, input_path, output_path = (
        expand_home(os.fspath(path)) for path in (folder, input_path, output_path)
    )
    if not pathlib.Path(output_path).exists():
        return False
    config = hub.read_model_config(folder)
    job = _score_job(
        *(input_path, folder, config, default_dtype(dtype)),
        history_reasoning=history_reasoning,
        channel=channel,
    )
    return is_finished_output_of(output_path, job)


def _score_job(
    input_path: PathLike, folder: PathLike, config: ModelConfig, dtype: FloatDtype, **settings: Any
) -> dict[str, Any]:
    return describe_job("score", input_path, folder, config, dtype=dtype, **settings)


def build_record_prompt(
    model: LoadedModel, record: Record, *, read: AudioReader = load_audio
) -> Prompt:
    """The prompt of a record's dialogue, its clips heard through `read`.

    Raises:
        DataError: naming the record's file and line.
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
            read=read,
        )
    except (AudioError, TextError) as error:
        raise DataError(f"{record.origin}: {error}") from None


def check_record_fits(
    model: LoadedModel, record: Record, prompt: Prompt, sampling: Sampling
) -> None:
    """Checks that a prompt and what may follow it fit the model's positions.

    Raises:
        GenerationError: naming the record's file and line.
    """
    try:
        check_prompt_fits(prompt, model.config, new_tokens=sampling.max_new_tokens)
    except GenerationError as error:
        raise GenerationError(f"{record.origin}: {error}") from None


def _read(path: PathLike) -> list[Record]:
    """All records of a file, so that a mistake in its last line is found before the first is answered."""
    records = list(read_jsonl(path))
    if not records:
        raise DataError(f"{path}: has no records; give at least one dialogue")
    return records


def default_dtype(dtype: FloatDtype | None) -> FloatDtype:
    """Returns the dtype of weights and computation: by default bfloat16, on a CPU float32, which is faster there."""
    return dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
