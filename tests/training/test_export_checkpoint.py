"""The model exported from a checkpoint is what the stage would have returned at that step."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest

from stepaudio_jax import hub
from stepaudio_jax.config import Config, MeshConfig, build
from stepaudio_jax.errors import CheckpointError, ConfigError, OutputError
from stepaudio_jax.models import abstract_lora, abstract_parameters
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training import export_checkpoint
from stepaudio_jax.training.checkpoints import StageCheckpoints
from stepaudio_jax.training.initial_weights import ModelParams, merge_adapters
from stepaudio_jax.training.run_folder import prepare_run_folder
from tests.models.random_model import SMALL
from tests.training.stages import init_stage

MODEL = dataclasses.replace(
    SMALL, decoder=dataclasses.replace(SMALL.decoder, vocab_size=290)
)  # for bytes as tokens
DATA = {"sources": [{"path": "unused"}]}
# One trains an adapter beside a frozen decoder; one has a value head and a reference policy, which
# are no part of the model.
STAGES = [
    {"name": "narrow", "steps": 10, "data": DATA, "trainable": ["adaptor"], "lora": {"rank": 2}},
    {
        "name": "policy",
        "steps": 10,
        "data": DATA,
        "objective": {
            "name": "policy_gradient",
            "advantage_estimator": "gae",
            "rewards": [{"verifier": "number", "verifier_weight": 1.0}],
        },
    },
]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a run folder with two saved steps of two stages, and the merged model of each."""
    run_dir = tmp_path_factory.mktemp("run")
    values = {
        "run_dir": str(run_dir),
        "tokenizer": "bytes",
        "stages": STAGES,
        "compute": {"dtype": "float32"},
    }
    config = dataclasses.replace(build(Config, values), model=MODEL)
    prepare_run_folder(config, MODEL, Tokenizer.byte_level(), begins=True)
    rng = np.random.default_rng(7)
    random = lambda leaf: rng.standard_normal(leaf.shape, np.float32)  # noqa: E731
    models = {}
    for index, stage in enumerate(config.stages):
        params = ModelParams(jax.tree.map(random, abstract_parameters(MODEL)))
        if index:  # the stage before has left its adapter, which is merged as this one begins
            params.lora_params["narrow"] = jax.tree.map(
                random, abstract_lora(MODEL, config.stages[0].lora).shapes
            )
        definition, _, state = init_stage(config, index, MODEL, params)
        checkpoints = StageCheckpoints(run_dir, index, stage.name, config.checkpoint)
        for step in (4, 8):
            state = state.with_trainable(jax.tree.map(random, state.trainable))
            state = dataclasses.replace(state, step=jax.numpy.int32(step))
            state = jax.tree.map(jax.numpy.asarray, state)
            checkpoints.save(state, {"index": step}, {})
            scales = [("narrow", definition.lora_scale)] if state.lora_params else []
            params = definition.params_after_stage(state, stage.name)
            models[stage.name, step] = jax.device_get(merge_adapters(params, scales, "float32"))
        checkpoints.close()
    return run_dir, models


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ("policy", 8)),
        ({"step": 4}, ("policy", 4)),
        ({"stage": "narrow"}, ("narrow", 8)),
        ({"stage": "narrow", "step": 4}, ("narrow", 4)),
    ],
)
def test_the_exported_model_is_what_the_stage_would_have_returned(
    run, mesh, tmp_path, arguments, expected
):
    run_dir, models = run
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    export_checkpoint(run_dir, tmp_path / "model", mesh, **arguments)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before
    sources = hub.weight_sources(str(tmp_path / "model"))
    assert hub.read_model_config(sources) == MODEL
    exported = hub.read_parameters(sources, config=MODEL, dtype="float32")
    assert jax.tree.structure(exported) == jax.tree.structure(models[expected])
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6),
        exported,
        models[expected],
    )
    adapter = hub.read_source_adapter(sources)
    assert (adapter is not None) == (expected[0] == "narrow")
    if adapter is not None:
        assert (adapter.lora.rank, adapter.lora.alpha) == (2, 32.0)


@pytest.mark.parametrize(
    "arguments", [{"step": 5}, {"stage": "other"}, {"stage": "narrow", "step": 10}]
)
def test_a_missing_step_is_refused_naming_the_saved_ones(run, mesh, tmp_path, arguments):
    with pytest.raises(
        CheckpointError,
        match=r"has no checkpoint of .*; saved steps are: narrow: 4, 8; policy: 4, 8$",
    ):
        export_checkpoint(run[0], tmp_path / "model", mesh, **arguments)
    assert not any(tmp_path.iterdir())


def test_an_existing_target_and_a_folder_without_a_run_are_refused(run, mesh, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="already exists"):
        export_checkpoint(run[0], tmp_path / "kept", mesh)
    with pytest.raises(
        ConfigError, match=r"config\.json does not exist; name the run_dir of a run"
    ):
        export_checkpoint(pathlib.Path(tmp_path / "kept"), tmp_path / "model", mesh)
