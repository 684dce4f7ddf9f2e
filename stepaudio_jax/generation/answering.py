"""A model that is ready to answer; prompts of records; and from a file of dialogues to a file of scores."""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import jax
from jax.sharding import Mesh

from stepaudio_jax import hub
from stepaudio_jax.audio import AudioError, load_audio
from stepaudio_jax.config import ComputeConfig, FloatDtype, ModelConfig
from stepaudio_jax.data import DataError, Record, read_jsonl
from stepaudio_jax.generation.engine import Engine
from stepaudio_jax.generation.error import GenerationError
from stepaudio_jax.generation.layout import slot_tokens, whole_slots, writing_mesh
from stepaudio_jax.generation.prompt import Prompt, ReadAudio, hear_prompt, require_fit
from stepaudio_jax.generation.sampling import Sampling
from stepaudio_jax.generation.scoring import Scorer
from stepaudio_jax.models import CacheDtype, Parameters, abstract_parameters, logical_axes, quantize_weights, unstack
from stepaudio_jax.parallel import parameter_shardings
from stepaudio_jax.text import TextError, Tokenizer, render_prompt

PathLike = str | pathlib.Path


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
        history_reasoning, history_eot: how past turns of a dialogue are rendered; see `render_prompt`.
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


def mesh_for(folder: PathLike, tensor: int = 0) -> Mesh | None:
    """The mesh of all devices for the model of a folder, or None where there is one device.

    Args:
        folder: of the model.
        tensor: over how many devices heads are cut; 0 for as many as divide them. What remains holds weights of its own.

    Raises:
        ConfigError: `tensor` does not divide the number of devices.
        CheckpointError: the folder holds no model.
    """
    if len(jax.devices()) == 1 and tensor in (0, 1):
        return None
    return writing_mesh(hub.read_model_config(folder), tensor=tensor)


def load_model(
    folder: PathLike,
    dtype: FloatDtype | None = None,
    *,
    int8_weights: bool = False,
    mesh: Mesh | None = None,
    writes_only: bool = False,
    history_reasoning: bool = False,
    history_eot: bool = True,
) -> LoadedModel:
    """Loads a Hugging Face folder or a checkpoint of this project.

    Args:
        folder: either kind.
        dtype: of weights and computation; by default bfloat16, and float32 on a CPU, which computes it faster.
        int8_weights: keep the decoder's matrices in int8, for generating only.
        mesh: where the weights lie, by the default rules; each process reads its own. None for one device.
        writes_only: keep the decoder's layers as an engine has them, which then needs no second copy of the weights. Such a
            model cannot score.
        history_reasoning, history_eot: see `LoadedModel`.
    """
    on_cpu = jax.default_backend() == "cpu"
    dtype = dtype or ("float32" if on_cpu else "bfloat16")
    compute = ComputeConfig(dtype=dtype, param_dtype=dtype, remat="none")
    config = hub.read_model_config(folder)
    tokenizer = hub.load_tokenizer(folder)  # before the weights, which take longer
    shardings = None
    if mesh is not None:
        shardings = parameter_shardings(logical_axes(config), abstract_parameters(config, compute), compute.rules, mesh)
    parameters = hub.read_parameters(folder, dtype=dtype, shardings=shardings)
    if int8_weights:
        parameters = quantize_weights(config, parameters, free=True)
    if writes_only:
        parameters = unstack(parameters, free=True)
    return LoadedModel(
        os.fspath(folder), config, parameters, tokenizer, compute, int8_weights, mesh, history_reasoning, history_eot
    )


def engine_for(
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
        slots=whole_slots(slots, model.compute.rules, model.mesh),
        slot_tokens=slot_tokens(longest, model.config),
        cache_dtype=cache_dtype,
        mesh=model.mesh,
    )


def score_file(model: LoadedModel, input_path: PathLike, output_path: PathLike) -> int:
    """Scores every assistant turn of every dialogue of a JSONL file; returns the number of dialogues.

    A line of the output holds id and turns, each with token_ids and logprobs.

    Raises:
        DataError: the file has no line, or one that cannot be used; names file and line. Nothing is written.
    """
    records = _read(input_path)
    scorer = Scorer(
        model.config,
        model.parameters,
        model.tokenizer,
        compute=model.compute,
        mesh=model.mesh,
        history_reasoning=model.history_reasoning,
    )

    def lines() -> Iterator[dict[str, object]]:
        for record in records:
            try:
                turns = scorer.score(record.messages)
            except (AudioError, TextError, GenerationError) as error:
                raise DataError(f"{record.origin}: {error}") from None
            yield {"id": record.id, "turns": [dataclasses.asdict(turn) for turn in turns]}

    return _write_lines(output_path, lines())


def prompt_of(model: LoadedModel, record: Record, *, read: ReadAudio = load_audio) -> Prompt:
    """The prompt of a record's dialogue, its clips heard through `read`.

    Raises:
        DataError: naming the record's file and line.
    """
    try:
        segments = render_prompt(
            record.messages, model.tokenizer, history_eot=model.history_eot, history_reasoning=model.history_reasoning
        )
        return hear_prompt(segments, model.tokenizer, model.config.length_convention, read=read)
    except (AudioError, TextError) as error:
        raise DataError(f"{record.origin}: {error}") from None


def require_room(model: LoadedModel, record: Record, prompt: Prompt, sampling: Sampling) -> None:
    """Checks that a prompt and what may follow it fit the model's positions.

    Raises:
        GenerationError: naming the record's file and line.
    """
    try:
        require_fit(prompt, model.config, new_tokens=sampling.max_new_tokens)
    except GenerationError as error:
        raise GenerationError(f"{record.origin}: {error}") from None


def _read(path: PathLike) -> list[Record]:
    """All records of a file, so that a mistake in its last line is found before the first is answered."""
    records = list(read_jsonl(path))
    if not records:
        raise DataError(f"{path}: has no records; give at least one dialogue")
    return records


def _write_lines(path: PathLike, lines: Iterable[dict[str, object]]) -> int:
    """Writes JSON lines under a temporary name that becomes `path` when all are written; else leaves nothing behind."""
    final = pathlib.Path(path).absolute()
    partial = final.with_name(final.name + ".partial")
    created = [folder for folder in final.parents if not folder.exists()]
    count = 0
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
        os.replace(partial, final)
    except BaseException:
        partial.unlink(missing_ok=True)
        for folder in created:
            with contextlib.suppress(OSError):  # another program may have put something there meanwhile
                folder.rmdir()
        raise
    return count
