"""Configuration: defaults, presets, overrides, and an error for everything that is wrong."""

import dataclasses
import json

import pytest

from stepaudio_jax.config import Config, ConfigError, ModelConfig, build, load_config, override, to_dict

MINIMAL = {"run_dir": "runs/x", "stages": [{"name": "sft", "steps": 3, "data": {"sources": [{"path": "a.jsonl"}]}}]}


@pytest.fixture
def config():
    return build(Config, MINIMAL)


def test_json_round_trip_is_exact(config):
    changed = dataclasses.replace(config, model=ModelConfig.presets()["tiny"], seed=7)
    assert build(Config, json.loads(json.dumps(to_dict(changed)))) == changed


def test_a_preset_takes_changes_of_single_fields():
    model = build(ModelConfig, {"preset": "mini_8b", "decoder": {"layers": 2}})
    assert (model.decoder.layers, model.decoder.hidden, model.decoder.norm_eps) == (2, 3584, 1e-6)


@pytest.mark.parametrize(
    ("key", "text", "read"),
    [
        ("seed", "5", lambda c: c.seed == 5),
        ("stages.sft.optimizer.learning_rate", "1", lambda c: c.stages[0].optimizer.learning_rate == 1.0),
        ("stages.0.trainable", "('decoder',)", lambda c: c.stages[0].trainable == ("decoder",)),
        ("initial.model", "some/folder", lambda c: c.initial.model == "some/folder"),
        ("model.preset", "tiny", lambda c: c.model == ModelConfig.presets()["tiny"]),
        ("stages.sft.data.sources.0.path", "b.jsonl", lambda c: c.stages[0].data.sources[0].path == "b.jsonl"),
        ("model.decoder.tied_embeddings", "true", lambda c: c.model.decoder.tied_embeddings is True),
    ],
)
def test_overrides(config, key, text, read):
    assert read(override(config, key, text))


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("stages.sft.optimizer.learing_rate", "1", "did you mean 'learning_rate'"),
        ("stages.sf.steps", "1", "no item 'sf' .allowed: 0 to 0, sft"),
        ("stages.1.steps", "1", "no item '1'"),
        ("seed", "1.5", "config.seed=1.5 is not of type int"),
        ("seed", "True", "config.seed=True is not of type int"),
        ("seed.x", "1", "single value"),
        ("compute.dtype", "float16", "'float32', 'bfloat16'"),
        ("model.preset", "mini", "did you mean 'mini_8b'"),
        ("model.decoder.kv_heads", "3", "heads=40 is not a multiple of kv_heads=3"),
        ("stages.sft.steps", "0", "steps=0 must be positive"),
        ("stages.sft.trainable", "('encodr',)", "'encodr' is not one of"),
        ("stages.sft.gradient_accumulation", "3", "multiple of gradient_accumulation=3"),
        ("stages", "()", "nothing to run"),
        ("run_dir", "None", "must not be None|not of type str"),
    ],
)
def test_wrong_overrides_name_the_key(config, key, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        override(config, key, text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:", "line 1"),
        ("x = 1", "does not define get_config"),
        ("def get_config(): return {}", "must return a stepaudio_jax.config.Config, got dict"),
    ],
)
def test_wrong_config_files_are_named(tmp_path, content, message):
    path = tmp_path / "wrong.py"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(str(path))
    assert str(path) in str(error.value)
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(str(tmp_path / "missing.py"))
