"""Values as users give them: strings, homes, seeds, and what is too long to print."""

import dataclasses

import pytest

from stepaudio_jax.config import (
    Config,
    DataConfig,
    InitialWeights,
    JudgeConfig,
    PolicyGradient,
    RewardConfig,
    SourceConfig,
    StageConfig,
    build,
    check_seed,
    load_config,
    override,
)
from stepaudio_jax.errors import ConfigError

STAGE = StageConfig(name="sft", steps=3, data=DataConfig(sources=(SourceConfig(path="a.jsonl"),)))


RL_STAGE = dataclasses.replace(
    STAGE, name="rl", objective=PolicyGradient(rewards=(RewardConfig(format_weight=1.0),))
)


@pytest.fixture
def config():
    return Config(run_dir="runs/x", stages=(STAGE, RL_STAGE))


@pytest.mark.parametrize(
    "text",
    [
        "20260101",
        "007",
        "1e5",
        "3.0",
        "true",
        "False",
        "null",
        "[1]",
        "{}",
        "(1,)",
        "-1",
        "a b",
        "0x10",
    ],
)
def test_where_a_string_is_wanted_a_value_is_a_string(config, text):
    assert override(config, ("run_dir", text)).run_dir == text
    assert override(config, ("initial.model", text)).initial.model == text
    named = override(config, ("stages.sft.data.sources.0.name", text))
    assert named.stages[0].data.sources[0].name == text


@pytest.mark.parametrize(
    ("key", "text", "read"),
    [
        ("run_dir", "'quoted'", lambda c: c.run_dir == "quoted"),
        ("tokenizer", "None", lambda c: c.tokenizer is None),
        ("compute.residual_dtype", "float32", lambda c: c.compute.residual_dtype == "float32"),
        (
            "stages.rl.objective.judge.preference_levels",
            "5",
            lambda c: c.stages[1].objective.judge.preference_levels == 5,
        ),
        (
            "stages.rl.objective.value_clip",
            "None",
            lambda c: c.stages[1].objective.value_clip is None,
        ),
        ("stages.rl.objective.value_clip", "1", lambda c: c.stages[1].objective.value_clip == 1.0),
        (
            "stages.0.data.augmentation.gain_db.1",
            "3",
            lambda c: c.stages[0].data.augmentation.gain_db == (0.0, 3.0),
        ),
        (
            "model.decoder.tied_embeddings",
            "true",
            lambda c: c.model.decoder.tied_embeddings is True,
        ),
    ],
)
def test_other_values_are_read_by_what_is_wanted(config, key, text, read):
    assert read(override(config, (key, text)))


def test_none_is_no_name(config):
    with pytest.raises(ConfigError, match=r"config\.run_dir=None is not of type str"):
        override(config, ("run_dir", "None"))


def test_a_tilde_is_home_in_every_path(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    home = str(tmp_path)
    written = Config(
        run_dir="~/run",
        tokenizer="~/t",
        initial=InitialWeights(model="~/m", encoder="~/e", decoder="~/d"),
        stages=(STAGE,),
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
def test_a_seed_that_no_key_can_hold_is_named(config, seed):
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


@pytest.mark.parametrize(
    "key",
    [
        "stages.sft.steps",
        "stages.sft.trainable",
        "model.preset",
        "compute.dtype",
        "stages.sft.x",
        "seed",
    ],
)
def test_what_is_too_long_is_not_printed_at_length(config, key):
    with pytest.raises(ConfigError) as raised:
        override(config, (key, "data:audio/wav;base64," + "A" * 300_000))
    assert len(str(raised.value)) < 1000
