"""Configuration: defaults, presets, overrides, and an error for everything that is wrong."""

import dataclasses
import json
import math
import typing

import pytest

from stepaudio_jax.config import (
    Config,
    DataConfig,
    LoRAConfig,
    ModelConfig,
    PolicyGradient,
    RewardConfig,
    RolloutConfig,
    SourceConfig,
    StageConfig,
    build,
    load_config,
    override,
    to_dict,
)
from stepaudio_jax.errors import ConfigError

MINIMAL = {
    "run_dir": "runs/x",
    "stages": [{"name": "sft", "steps": 3, "data": {"sources": [{"path": "a.jsonl"}]}}],
}


REWARDED = {
    **MINIMAL["stages"][0],
    "name": "rl",
    "objective": {"name": "policy_gradient", "rewards": [{"format_weight": 1.0}]},
}


@pytest.fixture
def config():
    return build(Config, MINIMAL | {"stages": [*MINIMAL["stages"], REWARDED]})


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
def test_overrides(config, key, text, read):
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
            "gs://bucket/runs/one",
            "run_dir='gs://bucket/runs/one' is an address: mount the bucket",
        ),
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


def sections(config, path=""):
    """Every dataclass of a configuration, with where it is."""
    yield path, config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(part):
                yield from sections(part, f"{path}.{field.name}")


def test_no_float_of_any_section_may_be_infinite_or_nan_or_nothing_to_float32(config):
    """Whatever section is added: its floats, those in tuples, and those that may be None."""
    kinds = {}
    for path, section in sections(config):
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


GROUPS = ("rloo", "grpo", "dr_grpo", "reinforce")
VERIFIED = RewardConfig(verifier="number", verifier_weight=1.0)
BY_A_FUNCTION = RewardConfig(verifier="mine:score", verifier_weight=1.0)
BY_FORM_TOO = RewardConfig(verifier="number", verifier_weight=1.0, format_weight=0.1)


def policy_stage(*rewards, trainable=("decoder",), chunks=0, lora=0, **settings):
    rollout = {
        name: settings.pop(name)
        for name in ("num_prompts", "num_generations", "max_new_tokens", "temperature")
        if name in settings
    }
    data = DataConfig(sources=(SourceConfig(path="a.jsonl"),), audio_chunks_per_seq=chunks)
    objective = PolicyGradient(
        rollout=RolloutConfig(**rollout), rewards=rewards or (VERIFIED,), **settings
    )
    return StageConfig(
        name="p",
        steps=1,
        data=data,
        objective=objective,
        trainable=trainable,
        lora=LoRAConfig(rank=lora),
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            (
                {"num_generations": 1, "advantage_estimator": name},
                f"rollout.num_generations=1 gives advantage_estimator='{name}' nothing",
            )
            for name in GROUPS
        ),
        (
            {"num_generations": 1, "kl_placement": "reward", "kl_coef": 0.1},
            "rollout.num_generations=1",
        ),
        (
            {"num_generations": 4, "num_correct_range": (4, 4)},
            r"num_correct_range=\(4, 4\) keeps prompts whose 4 replies rewards.0",
        ),
        (
            {"num_generations": 4, "num_correct_range": (0, 0)},
            r"num_correct_range=\(0, 0\) keeps prompts whose 4 replies rewards.0",
        ),
        ({"num_generations": 4, "num_correct_range": (5, 5)}, "exceeds rollout.num_generations=4"),
        (
            {
                "advantage_estimator": "gae",
                "num_prompts": 1,
                "num_generations": 1,
                "max_new_tokens": 1,
            },
            "one token a step",
        ),
        ({"temperature": 0.0}, "temperature=0.0 must be at least 0.01"),
        ({"temperature": 1e-9}, "temperature=1e-09 must be at least 0.01"),
        ({"clip_low": 0.0}, "clip_low=0.0 must be at least 1e-06"),
        ({"clip_high": 1e-12}, "clip_high=1e-12 must be at least 1e-06"),
        (
            {"trainable": ("adaptor",)},
            r"trainable=\('adaptor',\) are parts that hear, and data.audio_chunks_per_seq=0",
        ),
        ({"trainable": ()}, "trainable is empty"),
    ],
)
def test_a_stage_that_could_learn_nothing_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        policy_stage(**settings)


def test_and_what_is_close_to_it_and_can_learn_is_not():
    policy_stage(num_generations=2)
    policy_stage(num_generations=1, advantage_estimator="gae")
    policy_stage(num_generations=4, num_correct_range=(3, 4))
    policy_stage(num_generations=4, num_correct_range=(4, 4), kl_placement="reward")
    policy_stage(num_generations=4, num_correct_range=(4, 4), advantage_estimator="gae")
    policy_stage(BY_FORM_TOO, num_generations=4, num_correct_range=(4, 4))
    policy_stage(BY_A_FUNCTION, num_generations=4, num_correct_range=(0, 0))
    policy_stage(trainable=("adaptor",), chunks=1)
    policy_stage(trainable=("adaptor",), lora=2)
    of_sums = dataclasses.replace(VERIFIED, sources=("sums",))
    with pytest.raises(ConfigError, match=r"rewards.1 values alike"):
        policy_stage(BY_FORM_TOO, of_sums, num_generations=4, num_correct_range=(4, 4))
    with pytest.raises(ConfigError, match=r"num_correct_range=\(4, 4\)"):
        policy_stage(BY_A_FUNCTION, num_generations=4, num_correct_range=(4, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:", "line 1"),
        ("x = 1", "does not define get_config"),
        ("def get_config(): return {}", "must return a stepaudio_jax.config.Config, got dict"),
        ("\0", "null bytes"),
        (
            "import nothing_of_this_name",
            "line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'",
        ),
        (
            "from stepaudio_jax.config import *\ndef get_config():\n    return OptimizerConfig(\n        learning_rat=1)",
            r"line 3: unknown key OptimizerConfig.learning_rat; did you mean 'learning_rate'\? \(allowed: b1",
        ),
        (
            "from stepaudio_jax.config import *\ndef get_config():\n    return SourceConfig(path='a', weight=0)",
            "line 3: weight=0 of source 'a' must be positive",
        ),
        (
            "from stepaudio_jax.config import *\n"
            "data = DataConfig(sources=(SourceConfig(path='a'),))\n"
            "get_config = lambda: Config(run_dir='r', stages=(StageConfig(name='a', steps=2.5, data=data),))",
            r"config.stages.0.steps=2.5 is not of type int",
        ),
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


@pytest.mark.parametrize("key", ["tokenizer", "initial.model", "profile_steps"])
def test_an_empty_string_is_not_none(config, key):
    with pytest.raises(ConfigError, match=f"{key.split('.')[-1]}='' is empty: write None"):
        override(config, (key, ""))
