"""Plain values become dataclasses: presets, paths, seeds, and limits of floats."""

import dataclasses
import json
import math
import typing

import pytest

from stepaudio_jax.config import (
    Config,
    InitialWeights,
    JudgeConfig,
    ModelConfig,
    SourceConfig,
    build,
    check_seed,
    load_config,
    override,
    to_dict,
)
from stepaudio_jax.errors import ConfigError


def test_json_round_trip_is_exact(config):
    changed = dataclasses.replace(config, model=ModelConfig.presets()["tiny"], seed=7)
    assert build(Config, json.loads(json.dumps(to_dict(changed)))) == changed


def test_a_preset_takes_changes_of_single_fields():
    model = build(ModelConfig, {"preset": "mini_8b", "decoder": {"layers": 2}})
    assert (model.decoder.layers, model.decoder.hidden, model.decoder.norm_eps) == (2, 3584, 1e-6)


def _sections(config, path=""):
    """Yields every dataclass of a configuration, with its path."""
    yield path, config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(part):
                yield from _sections(part, f"{path}.{field.name}")


def test_no_float_of_any_section_may_be_nan_infinite_or_zero_in_float32(config):
    """Also holds for sections that are added later, for floats in tuples and optional floats."""
    kinds = {}
    for path, section in _sections(config):
        for name, hint in typing.get_type_hints(type(section)).items():
            if hint in (float, float | None):
                kinds[f"{path}.{name}"] = (section, name, lambda number: number)
            elif typing.get_origin(hint) is tuple and float in typing.get_args(hint):
                kinds[f"{path}.{name}"] = (section, name, lambda number: (number, number))
    assert {
        ".stages.optimizer.learning_rate",
        ".stages.objective.judge.reward_map",
        ".stages.objective.kl_target",
    } <= kinds.keys()
    assert {
        ".stages.data.sources.weight",
        ".stages.objective.rewards.judge_weight",
        ".model.decoder.rope_theta",
    } <= kinds.keys()
    for number in (math.nan, math.inf, -math.inf, 1e39, 1e-50):
        for section, name, of in kinds.values():
            with pytest.raises(ConfigError, match=rf"^{name}=.* (must be finite|is 0 in float32)"):
                dataclasses.replace(section, **{name: of(number)})


def test_every_path_expands_a_tilde(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    home = str(tmp_path)
    written = Config(
        run_dir="~/run",
        tokenizer="~/t",
        initial=InitialWeights(model="~/m", encoder="~/e", decoder="~/d"),
        stages=config.stages,
    )
    assert (written.run_dir, written.tokenizer) == (f"{home}/run", f"{home}/t")
    assert written.initial == InitialWeights(
        model=f"{home}/m", encoder=f"{home}/e", decoder=f"{home}/d"
    )
    assert SourceConfig(path="~/d/*.jsonl").path == f"{home}/d/*.jsonl"
    judge = build(JudgeConfig, {"folder": "~/j", "prompt": "~/p"})
    assert (judge.folder, judge.prompt) == (f"{home}/j", f"{home}/p")
    assert (
        override(config, ("run_dir", "~/x"), ("stages.sft.data.sources.0.path", "~/y")).run_dir
        == f"{home}/x"
    )
    (tmp_path / "c.py").write_text(
        "from stepaudio_jax.errors import ConfigError\n"
        "def get_config(): raise ConfigError('read')\n"
    )
    with pytest.raises(ConfigError, match="read"):
        load_config("~/c.py")


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 10**300])
def test_a_seed_out_of_range_is_an_error(config, seed):
    with pytest.raises(
        ConfigError, match=r"seed=.* must (not be negative|be at most 4611686018427387904)"
    ) as raised:
        check_seed(seed)
    assert len(str(raised.value)) < 400
    with pytest.raises(ConfigError, match="seed"):
        override(config, ("seed", str(seed)))
    with pytest.raises(ConfigError, match="a number of more than 4300 digits"):
        check_seed(10**5000)
    assert check_seed(2**62) == 2**62
