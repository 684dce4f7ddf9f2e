"""The finished model of a run, and that of a run that is under way, was stopped, or has diverged: of one of its checkpoints."""

import json
import os
import pathlib
from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from stepaudio_jax import hub
from stepaudio_jax.config import Config, ConfigError, LoRAConfig, ModelConfig, build
from stepaudio_jax.models import Parameters
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.checkpoints import load_parameters, saved_steps
from stepaudio_jax.training.run_folder import (
    CHECKPOINTS,
    CONFIG,
    MODEL,
    read_initial_adapter,
    read_model_spec,
)
from stepaudio_jax.training.start import (
    INITIAL_ADAPTER,
    abstract_train_state,
    adapters_before_stage,
)
from stepaudio_jax.training.step import FROZEN_LORA, HEADS, REFERENCE, VALUE


def export_model(
    target: pathlib.Path,
    parameters: Parameters,
    adapters: Mapping[str, LoRAConfig],
    config: Config,
    model: ModelConfig,
    tokenizer: Tokenizer,
    *,
    source: str,
) -> None:
    """Writes what a stage has left as a checkpoint folder, its adapters as one beside the decoder.

    With several processes every one calls this, and the first one writes.

    Args:
        target: the folder to write; must not exist, or be empty.
        parameters: as `ModelDef.params_after_stage` returns them.
        adapters: of those under FROZEN_LORA, by stage.
        config: of the run.
        model, tokenizer: that it trains.
        source: in words, where the weights came from.

    Raises:
        CheckpointError: the target exists.
    """
    parts = {name: tree for name, tree in parameters.items() if name != FROZEN_LORA}
    beside = None
    if FROZEN_LORA in parameters:
        pairs = [
            (lora, hub.adapter_matrices_on_host(parameters[FROZEN_LORA][name]))
            for name, lora in adapters.items()
        ]
        # What came with the initial weights is part of the adapter, whose base then is another
        # model than they are.
        base = "" if INITIAL_ADAPTER in adapters else config.initial.decoder or config.initial.model
        beside = hub.combine_adapters(pairs, base)
    hub.save_checkpoint(target, parts, model, tokenizer, source=source, adapter=beside)


def export_checkpoint(
    run_dir: pathlib.Path,
    target: pathlib.Path,
    mesh: Mesh,
    *,
    stage: str | None = None,
    step: int | None = None,
) -> None:
    """Writes the model that a run had at a saved step, as the run itself writes its finished one (see `export_model`).

    Nothing in the run's folder is changed. With several processes every one calls this, and the
    first one writes.

    Args:
        run_dir: the run's folder.
        target: the folder to write; must not exist, or be empty.
        mesh: of the devices here, which need not be those of the run.
        stage: its name; the last one that has a checkpoint if None.
        step: of the stage; the last one saved if None.

    Raises:
        CheckpointError: the run has no such checkpoint (the message says which there are), it
            cannot be read, or the target exists.
        ConfigError: the folder holds no run.
        ShardingError: the model cannot be cut over the mesh.
    """
    config = _config(run_dir)
    saved = {
        one.name: saved_steps(run_dir, index, one.name) for index, one in enumerate(config.stages)
    }
    found = (
        "; ".join(f"{name}: {', '.join(map(str, steps))}" for name, steps in saved.items() if steps)
        or "none"
    )
    name = stage or next((name for name in reversed(saved) if saved[name]), "")
    if not saved.get(name) or (step is not None and step not in saved[name]):
        asked = " ".join(
            part
            for part in (
                f"stage {name!r}" if name else "",
                f"step {step}" if step is not None else "",
            )
            if part
        )
        raise hub.CheckpointError(
            f"{run_dir} has no checkpoint{f' of {asked}' if asked else ''}; saved steps are: {found}"
        )
    index = list(saved).index(name)
    step = saved[name][-1] if step is None else step
    hub.check_output_available(target)
    _check_target(target, run_dir)
    model, tokenizer = read_model_spec(run_dir)
    adapter = read_initial_adapter(run_dir)
    start = abstract_train_state(config, index, model, mesh, adapter)
    trainable = {
        part: tree for part, tree in start.abstract.trainable.items() if part not in (HEADS, VALUE)
    }
    frozen = {part: tree for part, tree in start.abstract.frozen.items() if part != REFERENCE}
    with jax.set_mesh(mesh):
        parameters = load_parameters(run_dir, index, name, step, trainable=trainable, frozen=frozen)
        left = start.model_def.params_after_stage(parameters, name)
        adapters = adapters_before_stage(config, index + 1, adapter)
        source = f"step {step} of stage {name!r} of {run_dir}"
        export_model(target, left, adapters, config, model, tokenizer, source=source)


def _check_target(target: pathlib.Path, run_dir: pathlib.Path) -> None:
    """Refuses the places by which a run knows how far it is: a model there would pass for the run's finished one.

    Raises:
        CheckpointError: the target is one of them.
    """
    resolved, run = pathlib.Path(os.path.realpath(target)), pathlib.Path(os.path.realpath(run_dir))
    if resolved == run / MODEL or (run / CHECKPOINTS) in (resolved, *resolved.parents):
        raise hub.CheckpointError(
            f"{target}: the run writes there itself, and would take what is there for its own; choose another output"
        )


def _config(run_dir: pathlib.Path) -> Config:
    path = run_dir / CONFIG
    try:
        return build(Config, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; name the run_dir of a run") from None
    except ValueError as error:  # a ConfigError too
        raise ConfigError(f"{path}: {error}; name the run_dir of a run") from None
