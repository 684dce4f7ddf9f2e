"""Names of earlier versions: none is accepted, and each error gives the present name."""

import dataclasses

import pytest

import stepaudio_jax.config
from stepaudio_jax.config import Config, build, load_config, override
from stepaudio_jax.config.renamed import RENAMED_CLASSES, RENAMED_KEYS
from stepaudio_jax.errors import ConfigError
from tests.config.minimal import MINIMAL

ROWS = [(section, old, new) for section, keys in RENAMED_KEYS.items() for old, new in keys.items()]
SECTIONS = {
    "Config": "",
    "StageConfig": "stages.rl.",
    "DataConfig": "stages.sft.evaluation.data.",
    "RolloutConfig": "stages.rl.objective.rollout.",
    "RewardConfig": "stages.rl.objective.rewards.0.",
    "JudgeConfig": "stages.rl.objective.judge.",
    "PolicyGradient": "stages.rl.objective.",
}


@pytest.mark.parametrize(("section", "old", "new"), ROWS)
def test_an_old_key_names_the_new_one(config, section, old, new):
    with pytest.raises(ConfigError) as raised:
        override(config, (f"{SECTIONS[section]}{old}", "1"))
    assert f"config.{SECTIONS[section]}{old} is now config.{SECTIONS[section]}{new}" == str(
        raised.value
    )


@pytest.mark.parametrize(("section", "old", "new"), ROWS)
def test_the_new_keys_exist_and_the_old_ones_do_not(section, old, new):
    cls = getattr(stepaudio_jax.config, section)
    fields = {field.name for field in dataclasses.fields(cls)}
    assert old.partition(".")[0] not in fields
    assert new.partition(".")[0] in fields


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("stages.sft.rl.policy.kl_coefficient", "stages.sft.objective.kl_coef"),
        ("stages.sft.rl.rollout.samples", "stages.sft.objective.rollout.num_generations"),
        ("stages.sft.rl.judge.key_variable", "stages.sft.objective.judge.api_key_env"),
        ("stages.0.auxiliary.ctc_weight", "stages.0.objective.auxiliary.ctc_weight"),
    ],
)
def test_keys_below_a_section_that_moved_are_translated_as_a_whole(config, old, new):
    with pytest.raises(ConfigError, match=rf"config\.{old} is now config\.{new}$"):
        override(config, (old, "1"))


def test_old_values_name_the_new_ones(config):
    with pytest.raises(ConfigError, match="objective='policy' is now 'policy_gradient'"):
        override(config, ("stages.sft.objective", "policy"))
    with pytest.raises(ConfigError, match=r"remat_names\.1='attended' is now 'attn_out'"):
        override(config, ("compute.remat_names", "('query', 'attended')"))


def test_plain_values_with_old_keys_name_the_new_ones():
    stage = MINIMAL["stages"][0]
    data = stage["data"] | {"tokens_per_row": 512}
    with pytest.raises(
        ConfigError, match=r"data\.tokens_per_row is now config\.stages\.0\.data\.seq_len"
    ):
        build(Config, MINIMAL | {"stages": [stage | {"data": data}]})
    with pytest.raises(ConfigError, match=r"stages\.0\.rl is now config\.stages\.0\.objective"):
        build(Config, MINIMAL | {"stages": [stage | {"rl": {}}]})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("DataConfig(rows=4)", "line 3: DataConfig.rows is now DataConfig.batch_size"),
        (
            "StageConfig(name='a', steps=1, data=DataConfig(), rl=None)",
            "line 3: StageConfig.rl is now StageConfig.objective",
        ),
        *((f"{old}()", f"line 3: {old} is now {new}") for old, new in RENAMED_CLASSES.items()),
    ],
)
def test_old_names_in_a_file_are_named_with_their_line(tmp_path, line, message):
    path = tmp_path / "old.py"
    path.write_text(f"from stepaudio_jax.config import *\ndef get_config():\n    {line}\n")
    with pytest.raises(ConfigError, match=message):
        load_config(path)
    path.write_text("from stepaudio_jax.config import RLConfig\n")
    with pytest.raises(ConfigError, match="line 1: RLConfig is now PolicyGradient"):
        load_config(path)
