"""Settings on the command line: what a key names, how its value is read, and what is refused."""

import json

import pytest

from stepaudio_jax.config import (
    Config,
    ModelConfig,
    PolicyGradient,
    RewardConfig,
    build,
    override,
    split_flags,
    to_dict,
)
from stepaudio_jax.errors import ConfigError
from tests.config.minimal import MINIMAL


@pytest.mark.parametrize(
    ("key", "text", "read"),
    [
        ("seed", "5", lambda c: c.seed == 5),
        (
            "stages.sft.optimizer.learning_rate",
            "1",
            lambda c: c.stages[0].optimizer.learning_rate == 1.0,
        ),
        ("stages.0.trainable", "('decoder',)", lambda c: c.stages[0].trainable == ("decoder",)),
        ("initial.model", "some/folder", lambda c: c.initial.model == "some/folder"),
        ("model.preset", "tiny", lambda c: c.model == ModelConfig.presets()["tiny"]),
        (
            "stages.sft.data.sources.0.path",
            "b.jsonl",
            lambda c: c.stages[0].data.sources[0].path == "b.jsonl",
        ),
        (
            "model.decoder.tied_embeddings",
            "true",
            lambda c: c.model.decoder.tied_embeddings is True,
        ),
    ],
)
def test_overrides_replace_single_values(config, key, text, read):
    assert read(override(config, (key, text)))


def test_overrides_may_need_each_other(config):
    """Each of these alone is refused, in any order."""
    judge = "stages.rl.objective.judge"
    url = [(f"{judge}.url", "http://x/v1"), (f"{judge}.model", "m")]
    lora = [("stages.sft.lora.rank", "4"), ("stages.sft.trainable", "('adaptor',)")]
    for settings in (url, lora):
        for ordered in (settings, settings[::-1]):
            changed = override(config, *ordered).stages[0]
    assert changed.lora.rank == 4
    both = override(config, *url, ("seed", "3"))
    assert (both.seed, both.stages[1].objective.judge.model) == (3, "m")
    swapped = override(
        both,
        (f"{judge}.url", "None"),
        (f"{judge}.model", "None"),
        (f"{judge}.folder", "f"),
        (f"{judge}.slots", "2"),
    )
    assert (swapped.stages[1].objective.judge.folder, swapped.stages[1].objective.judge.slots) == (
        "f",
        2,
    )
    with pytest.raises(ConfigError, match="belong together"):
        override(config, url[0], ("seed", "3"))
    # Presets and whole sections between them are what they are alone.
    between = [
        ("model.preset", "tiny"),
        ("model.decoder.layers", "2"),
        ("stages.sft.optimizer", "{'b2': 0.9}"),
    ]
    changed = override(config, url[0], *between, ("stages.sft.optimizer.eps", "1e-6"), url[1])
    assert (
        changed.model.decoder.layers,
        changed.stages[0].optimizer.b2,
        changed.stages[0].optimizer.eps,
    ) == (2, 0.9, 1e-6)
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        override(config, ("model.preset", "tinny"), ("model.decoder.layers", "2"))


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("stages.sft.optimizer.learing_rate", "1", "did you mean 'learning_rate'"),
        ("stages.sf.steps", "1", "no item 'sf' .allowed: 0 to 1, sft, rl"),
        ("stages.2.steps", "1", "no item '2'"),
        ("seed", "1.5", "config.seed=1.5 is not of type int"),
        ("seed", "True", "config.seed=True is not of type int"),
        ("seed.x", "1", "single value"),
        ("compute.dtype", "float16", "'float32', 'bfloat16'"),
        ("model.preset", "mini", "did you mean 'mini_8b'"),
        ("model.decoder.kv_heads", "3", "heads=40 is not a multiple of kv_heads=3"),
        ("stages.sft.steps", "0", "steps=0 must be positive"),
        ("stages.sft.trainable", "('encodr',)", "'encodr' is not one of"),
        (
            "stages.sft.gradient_accumulation_steps",
            "3",
            "multiple of gradient_accumulation_steps=3",
        ),
        ("stages", "()", "nothing to run"),
        ("run_dir", "None", "must not be None|not of type str"),
        ("run_dir", "", "run_dir is empty"),
        (
            "run_dir",
            "gcs://bucket/runs/one",
            "run_dir: gcs://bucket/runs/one: gcs:// is not read",
        ),
        ("run_dir", "https://host/run", "run_dir='https://host/run' is an address of the web"),
        ("compute.loss_chunks", "0", "loss_chunks=0 must be positive"),
        ("compute.unroll", "-1", "unroll=-1 must not be negative"),
        (
            "stages.sft.optimizer.learning_rate",
            "0",
            "learning_rate=0.0 must be positive: nothing would learn",
        ),
        (
            "stages.sft.optimizer.muon_learning_rate",
            "-1e-3",
            "muon_learning_rate=-0.001 must be positive",
        ),
        ("stages.sft.optimizer.learning_rate", "1e999", "learning_rate=inf must be finite"),
        ("stages.sft.optimizer.learning_rate", "1e-60", "learning_rate=1e-60 is 0 in float32"),
        (
            "stages.sft.optimizer.learning_rate",
            "9" * 400,
            "config.stages.0.optimizer.learning_rate must be at most",
        ),
        (
            "stages.rl.objective.judge.reward_map",
            "(0.0, 0.0, 0.0)",
            "config.stages.1.objective.judge: reward_map=.* makes every reward 0",
        ),
        ("stages.rl.objective.judge.reward_map", "(0.5,)", "reward_map=.* must have 3 values"),
        (
            "stages.rl.objective.judge.reward_map_temperature",
            "0.0",
            "config.stages.1.objective.judge: reward_map_temperature=0.0 must be positive",
        ),
        ("stages.rl.objective.judge.timeout_s", "0", "timeout_s=0.0 must be positive"),
        ("stages.rl.objective.judge.retries", "-1", "retries=-1 must not be negative"),
        ("stages.sft.optimizer.b2", "1.0", "b2=1.0 must be at least 0 and less than 1"),
        ("stages.sft.optimizer.eps", "0.0", "eps=0.0 must be positive"),
        ("stages.sft.optimizer.final_learning_rate_fraction", "1.5", "must be between 0 and 1"),
        ("seed", "-1", "seed=-1 must not be negative"),
        ("log_every_steps", "0", "log_every_steps=0 must be positive"),
        ("checkpoint.keep", "0", "config.checkpoint: keep=0 must be positive"),
        ("stages.sft.name", "a/b", "name='a/b' must be of letters"),
        ("stages.sft.optimizer.warmup_steps", "-1", "warmup_steps=-1 must not be negative"),
        ("stages.sft.evaluation.batches", "0", "batches=0 must be positive"),
        (
            "stages.sft.evaluation.data.augmentation.max_shift_s",
            "0.1",
            "leave it out of evaluation.data",
        ),
        ("stages.sft.objective.auxiliary.ctc_weight", "0.3", "ctc_weight=0.3 needs ctc_words"),
        (
            "stages.sft.objective.auxiliary.attribute_weight",
            "0.3",
            "attribute_weight=0.3 needs attributes",
        ),
    ],
)
def test_wrong_overrides_name_the_key(config, key, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        override(config, (key, text))
    assert "\n" not in str(error.value)


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
def test_the_text_is_the_value_where_the_key_takes_a_string(config, text):
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
def test_other_values_are_read_by_the_type_of_the_key(config, key, text, read):
    assert read(override(config, (key, text)))


def test_none_is_no_string(config):
    with pytest.raises(ConfigError, match=r"config\.run_dir=None is not of type str"):
        override(config, ("run_dir", "None"))


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
def test_messages_shorten_long_values(config, key):
    with pytest.raises(ConfigError) as raised:
        override(config, (key, "data:audio/wav;base64," + "A" * 300_000))
    assert len(str(raised.value)) < 1000


OBJECTIVE = "stages.sft.objective"


def test_an_objective_is_chosen_by_name():
    config = build(Config, MINIMAL)
    rewards = (f"{OBJECTIVE}.rewards", "({'format_weight': 1},)")
    kl_coef = (f"{OBJECTIVE}.kl_coef", "0.02")
    changed = override(config, (OBJECTIVE, "policy_gradient"), rewards, kl_coef)
    assert changed.stages[0].objective == PolicyGradient(
        rewards=(RewardConfig(format_weight=1.0),), kl_coef=0.02
    )
    assert build(Config, json.loads(json.dumps(to_dict(changed)))) == changed
    again = override(changed, (OBJECTIVE, "{'gamma': 0.9, 'rewards': [{'format_weight': 1}]}"))
    assert again.stages[0].objective == PolicyGradient(
        rewards=(RewardConfig(format_weight=1.0),), gamma=0.9
    )
    assert override(changed, (OBJECTIVE, "next_token")) == config
    with pytest.raises(ConfigError, match="rewards is empty"):
        override(config, (OBJECTIVE, "policy_gradient"))
    with pytest.raises(ConfigError, match="did you mean 'policy_gradient'"):
        override(config, (OBJECTIVE, "policy_gradiant"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            [("model.decoder.layers", "2"), ("model.preset", "tiny")],
            "config.model.preset comes after config.model.decoder.layers, which it would replace",
        ),
        (
            [("stages.sft.objective.auxiliary.ctc_weight", "0.1"), (OBJECTIVE, "next_token")],
            "put config.stages.sft.objective before it",
        ),
        (
            [("stages.0.data.sources.0.weight", "2"), ("stages.sft.data.sources", "()")],
            "config.stages.sft.data.sources comes after config.stages.0.data.sources.0.weight",
        ),
        ([("stages.rl.steps", "2"), ("stages", "()")], "config.stages comes after"),
    ],
)
def test_a_section_cannot_be_replaced_after_one_of_its_keys(config, settings, message):
    with pytest.raises(ConfigError, match=message):
        override(config, *settings)


def test_a_list_is_replaced_before_its_items(config):
    gains = (("stages.sft.data.augmentation.gain_db", "(-1, 1)"),)
    gains += (("stages.0.data.augmentation.gain_db.1", "3"),)
    assert override(config, *gains).stages[0].data.augmentation.gain_db == (-1.0, 3.0)
    sources = ("stages.sft.data.sources", "[{'path': 'b'}, {'path': 'c', 'name': 'talk'}]")
    weights = [(f"stages.sft.data.sources.{item}.weight", "2") for item in ("0", "talk")]
    changed = override(config, sources, *weights).stages[0].data.sources
    assert [(source.path, source.weight) for source in changed] == [("b", 2.0), ("c", 2.0)]
    heard = ("stages.sft.objective.auxiliary.attributes", "{'sex': ['m', 'f'], 'items': ['x']}")
    item = ("stages.sft.objective.auxiliary.attributes.items", "('y',)")
    changed = override(config, heard, item).stages[0].objective.auxiliary.attributes
    assert changed == {"sex": ("m", "f"), "items": ("y",)}


def test_keys_of_an_incomplete_list_can_follow_it(config):
    stage = ("stages", "[{'name': 'a', 'data': {'sources': [{'path': 'b'}]}}]")
    assert override(config, stage, ("stages.a.steps", "7")).stages[0].steps == 7
    with pytest.raises(ConfigError, match=r"config\.stages\.0 needs a value for: steps"):
        override(config, stage)
    gains = ("stages.sft.data.augmentation.gain_db", "(-1, 1, 3)")
    with pytest.raises(ConfigError, match="must have 2 values"):
        override(config, gains, (f"{gains[0]}.2", "3"))


def test_the_last_of_equal_keys_counts_by_name_or_number(config):
    assert override(config, ("stages.sft.steps", "5"), ("stages.0.steps", "6")).stages[0].steps == 6


def test_a_key_of_the_other_objective_names_it(config):
    message = (
        r"config.stages.sft.objective is next_token, which has no kl_coef; policy_gradient has: "
        r"set config.stages.sft.objective=policy_gradient before it"
    )
    with pytest.raises(ConfigError, match=message):
        override(config, (f"{OBJECTIVE}.kl_coef", "0.02"))
    message = "write config.stages.sft.objective=next_token or config.stages.sft.objective=policy_"
    with pytest.raises(ConfigError, match=message):
        override(config, (f"{OBJECTIVE}.name", "policy_gradient"))


def test_flags_are_separated_from_other_arguments(tmp_path):
    (tmp_path / "flags").write_text("# a comment\n--config.seed=4\n--distributed\n")
    arguments = ["--config.stages.sft.steps", "-1", "--verbose", "--config=a.py"]
    path, settings, others = split_flags(
        [*arguments, f"--flagfile={tmp_path / 'flags'}", "--config.tokenizer="]
    )
    assert path == "a.py"
    assert settings == [("stages.sft.steps", "-1"), ("seed", "4"), ("tokenizer", "")]
    assert others == ["--verbose", "--distributed"]
    assert split_flags(["--config", "b.py"]) == ("b.py", [], [])
    for arguments in (["--config.seed"], ["--config.seed", "--config=a.py"]):
        with pytest.raises(ConfigError, match=r"--config\.seed has no value"):
            split_flags(arguments)
    with pytest.raises(ConfigError, match="nowhere"):
        split_flags([f"--flagfile={tmp_path / 'nowhere'}"])


def test_flags_are_no_global_ones_and_can_be_read_again(config):
    """absl's global flags belong to the programs that use it, and hold other libraries' flags."""
    from absl import flags

    before = set(flags.FLAGS)
    for seed in range(3):
        assert override(config, ("seed", str(seed))).seed == seed
    assert set(flags.FLAGS) == before


def test_a_task_that_counts_errors_is_no_measure_of_the_best(config):
    with pytest.raises(ConfigError, match="best_metric='recognition' counts errors"):
        override(
            config,
            ("stages.sft.evaluation.tasks", "('recognition=data',)"),
            ("checkpoint.keep_best", "1"),
            ("checkpoint.best_metric", "recognition"),
        )


def test_keep_best_without_a_held_out_loss_is_refused(config):
    with pytest.raises(ConfigError, match=r"checkpoint\.keep_best=2 .* which no stage measures"):
        override(config, ("checkpoint.keep_best", "2"))
    data = "{'sources': ({'path': 'held_out.jsonl'},)}"
    measured = override(config, ("stages.sft.evaluation.data", data), ("checkpoint.keep_best", "2"))
    assert measured.checkpoint.keep_best == 2


def test_a_line_is_logged_after_each_rl_step_unless_configured(config):
    sft, rl = config.stages
    assert (config.steps_per_log_line(sft), config.steps_per_log_line(rl)) == (10, 1)
    set_to_3 = override(config, ("log_every_steps", "3"))
    assert (set_to_3.steps_per_log_line(sft), set_to_3.steps_per_log_line(rl)) == (3, 3)


@pytest.mark.parametrize("key", ["tokenizer", "initial.model", "profile_steps"])
def test_an_empty_string_is_not_none(config, key):
    with pytest.raises(ConfigError, match=f"{key.split('.')[-1]}='' is empty: write None"):
        override(config, (key, ""))
