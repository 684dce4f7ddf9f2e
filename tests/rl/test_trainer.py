"""A policy-gradient stage: exact first steps, and what must not change the result."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepaudio_jax.config import CheckpointConfig, Config, JudgeConfig, LoRAConfig, RewardConfig
from stepaudio_jax.data.checking import DataChecker
from stepaudio_jax.errors import ConfigError, DivergedError, InterruptedRunError
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.rl.metrics import SampleWriter
from stepaudio_jax.rl.rewards import RewardFunction
from stepaudio_jax.rl.trainer import PolicyIteration, PolicyTrainer
from stepaudio_jax.training.preemption import PreemptionNotice
from stepaudio_jax.training.stage_context import StageContext
from tests.rl.small_stage import base, run_stage, stage_config, write_prompts


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory, prompts):
    """Parameters and metrics after one step, in one batch of rows."""
    return run_stage(
        stage_config(tmp_path_factory.mktemp("plain"), prompts, steps=1, data={"batch_size": 16})
    )


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory, prompts):
    """Parameters and metrics after three steps."""
    return run_stage(stage_config(tmp_path_factory.mktemp("three"), prompts, steps=3))


def difference(ours, theirs):
    """Returns the largest difference of two updates, relative to the largest change of theirs."""
    before = base().parameters
    changed = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), theirs, before)
    apart = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), ours, theirs)
    return max(jax.tree.leaves(apart)) / max(jax.tree.leaves(changed))


@pytest.mark.parametrize(
    "temperature",
    [0.5, pytest.param(0.9, marks=pytest.mark.slow), pytest.param(1.0, marks=pytest.mark.slow)],
)
def test_at_the_first_step_the_ratio_is_1_and_the_kl_0(tmp_path, prompts, temperature):
    _, (metrics,) = run_stage(
        stage_config(
            tmp_path, prompts, steps=1, rollout={"temperature": temperature, "num_prompts": 6}
        )
    )
    assert metrics["reply_kl"] == 0
    assert metrics["kl"] == 0
    assert metrics["clip_fraction"] == 0
    assert metrics["ratio"] == pytest.approx(1, abs=1e-6)  # a sum of weights that add up to 1
    assert metrics["sampler_mismatch"] < 1.001
    assert 0 < metrics["reward"] < 1
    assert metrics["audio_chunks_encoded"] == 3  # of six prompts, each answered four times


def rewarded_by(config, verifier, **optimizer):
    """Returns the run with another reward and optimizer."""
    reward = RewardConfig(verifier=verifier, verifier_weight=1.0)
    stage = config.stages[0]
    stage = dataclasses.replace(
        stage,
        objective=dataclasses.replace(stage.policy_gradient, rewards=(reward,)),
        optimizer=dataclasses.replace(stage.optimizer, **optimizer),
    )
    return dataclasses.replace(config, stages=(stage,))


@pytest.mark.slow
def test_equal_rewards_change_nothing(tmp_path, prompts, caplog):
    """The policy still is the reference in the second step: rounding must not count as a KL.

    Adam would turn even rounding into a full step, and weight decay needs no gradient at all.
    """
    config = stage_config(tmp_path, prompts, steps=2, policy={"kl_target": 0.05})
    after, steps = run_stage(
        rewarded_by(config, "tests.rl.small_stage:never", eps=1e-8, weight_decay=0.1)
    )
    assert [metrics["reward_std"] for metrics in steps] == [0, 0]
    for name, value in {
        "gradient_norm": 0,
        "kl": 0,
        "reply_kl": 0,
        "zero_gradient_updates": 1,
        "kl_coef": 0.01,
    }.items():
        assert [metrics[name] for metrics in steps] == [value, value], name
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, after.params, base().parameters)))
    assert "stage 'rlvr' trained nothing: none of its 2 steps changed a parameter" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_momentum_does_not_move_a_policy_without_gradients(tmp_path, prompts, name):
    """After a step that left momentum, also where the run was resumed in between."""
    settings = {
        "name": name,
        "eps": 1e-8,
        "learning_rate": 1e-4,
        "muon_learning_rate": 1e-3,
        "weight_decay": 0.1,
    }
    policy = {"kl_coef": 0.0}
    config = rewarded_by(
        stage_config(tmp_path, prompts, steps=1, policy=policy),
        "tests.rl.small_stage:even",
        **settings,
    )
    first, (metrics,) = run_stage(config)
    assert metrics["zero_gradient_updates"] == 0
    assert not np.array_equal(
        first.params["decoder"]["embedding"], base().parameters["decoder"]["embedding"]
    )
    config = rewarded_by(
        stage_config(tmp_path, prompts, steps=2, policy=policy),
        "tests.rl.small_stage:never",
        **settings,
    )
    second, lines = run_stage(config)
    assert [line["zero_gradient_updates"] for line in lines] == [0, 1]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, second, first)))


def test_a_step_changes_the_policy_and_nothing_frozen(plain):
    after, _ = plain
    before = base().parameters
    assert all(
        jax.tree.leaves(jax.tree.map(np.array_equal, after.params["encoder"], before["encoder"]))
    )
    assert not np.array_equal(
        after.params["adaptor"]["down"]["kernel"], before["adaptor"]["down"]["kernel"]
    )
    assert not np.array_equal(after.params["decoder"]["embedding"], before["decoder"]["embedding"])


@pytest.mark.slow
def test_with_lora_the_reference_is_the_policy_without_it(tmp_path, prompts):
    config = stage_config(tmp_path, prompts, steps=2)
    stage = dataclasses.replace(config.stages[0], trainable=(), lora=LoRAConfig(rank=4))
    after, metrics = run_stage(dataclasses.replace(config, stages=(stage,)))
    assert [line["kl"] == 0 for line in metrics] == [True, False]
    assert np.array_equal(
        after.params["adaptor"]["down"]["kernel"], base().parameters["adaptor"]["down"]["kernel"]
    )
    assert all(
        jax.tree.leaves(
            jax.tree.map(np.array_equal, after.params["decoder"], base().parameters["decoder"])
        )
    )
    assert np.abs(after.lora_params["rlvr"]["mlp"]["up"]["up"]).max() > 0
    assert all(
        line["sampler_mismatch"] < 1.001 for line in metrics
    )  # the engine has the adapter too: of the second step


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        pytest.param({"batch_size": 2}, id="in micro-batches"),
        pytest.param(
            {"batch_size": 16, "seq_len": 400, "audio_chunks_per_seq": 3},
            id="packed",
        ),
    ],
)
def test_micro_batches_do_not_matter(tmp_path, prompts, plain, data):
    after, (metrics,) = run_stage(stage_config(tmp_path, prompts, steps=1, data=data))
    assert metrics["reward"] == plain[1][0]["reward"]
    assert metrics["loss"] == pytest.approx(plain[1][0]["loss"], abs=1e-6)
    assert metrics["gradient_norm"] == pytest.approx(plain[1][0]["gradient_norm"], rel=1e-5)
    assert difference(after.params, plain[0].params) < 1e-4


@pytest.mark.slow
def test_the_value_head_learns(tmp_path, prompts):
    policy = {
        "advantage_estimator": "gae",
        "kl_placement": "reward",
        "gae_lambda": 0.95,
        "value_clip": None,
        "value_coef": 1.0,
    }
    after, metrics = run_stage(stage_config(tmp_path, prompts, steps=4, policy=policy))
    assert metrics[0]["value_loss"] == pytest.approx(
        metrics[0]["reward_verifier"] / 2, rel=0.5
    )  # half the squared return
    assert metrics[-1]["value_loss"] < metrics[0]["value_loss"]
    assert set(after.params) == {"encoder", "adaptor", "decoder"}


@pytest.mark.slow
def test_a_stage_resumes_exactly(tmp_path, prompts):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    options = {"policy": {"epochs": 2, "minibatches": 2, "kl_target": 0.05}}
    whole, metrics = run_stage(stage_config(tmp_path / "whole", prompts, steps=3, **options))
    cut = stage_config(tmp_path / "cut", prompts, steps=3, **options)
    run_stage(dataclasses.replace(cut, stages=(dataclasses.replace(cut.stages[0], steps=1),)))
    after, again = run_stage(cut)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, after, whole)))
    timing = {name for name in metrics[0] if name.startswith("seconds/")}
    assert [{k: v for k, v in line.items() if k not in timing} for line in again] == [
        {k: v for k, v in line.items() if k not in timing} for line in metrics
    ]


@pytest.mark.slow
def test_steps_are_logged_and_profiled_as_configured(tmp_path, prompts, three_steps):
    config = stage_config(tmp_path, prompts, steps=3)
    after, lines = run_stage(dataclasses.replace(config, log_every_steps=2, profile_steps="2:2"))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, after, three_steps[0])))
    every_step = three_steps[1]
    assert [line["step"] for line in every_step] == [1, 2, 3]
    assert [line["step"] for line in lines] == [2, 3]
    for name in ("loss", "reward", "completion_tokens"):
        assert lines[0][name] == np.mean([line[name] for line in every_step[:2]]), name
        assert lines[1][name] == every_step[2][name], name
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 1


def test_a_row_that_loss_chunks_do_not_divide_is_rejected(tmp_path, prompts):
    config = stage_config(tmp_path, prompts, steps=1)
    with pytest.raises(
        ConfigError,
        match=r"stage 'rlvr': data.seq_len=160 must be a multiple of compute.loss_chunks=3",
    ):
        dataclasses.replace(config, compute=dataclasses.replace(config.compute, loss_chunks=3))


def check_stage(folder, stage):
    """Checks a stage as a run does before it begins."""
    model, tokenizer = base().config, base().tokenizer
    config = Config(run_dir=str(folder / "run"), model=model, stages=(stage,))
    mesh = make_mesh(config.mesh)
    context = StageContext(config, 0, model, tokenizer, mesh, PreemptionNotice())
    PolicyTrainer(context).check_data(DataChecker(folder / "run", model, tokenizer))


def test_a_reward_of_a_source_without_records_is_rejected(tmp_path, prompts):
    stage = stage_config(tmp_path, prompts, steps=1).stages[0]
    rewards = (*stage.policy_gradient.rewards, RewardConfig(sources=("promts",), format_weight=1.0))
    stage = dataclasses.replace(
        stage, objective=dataclasses.replace(stage.policy_gradient, rewards=rewards)
    )
    with pytest.raises(
        ConfigError,
        match=r"names the sources promts, and no record has them; those of the records are prompts",
    ):
        check_stage(tmp_path, stage)


def test_chunks_longer_than_the_encoders_positions_are_rejected(tmp_path, prompts):
    stage = stage_config(tmp_path, prompts, steps=1, data={"mel_frames_per_chunk": 10_000}).stages[
        0
    ]
    with pytest.raises(
        ConfigError, match=r"mel_frames_per_chunk=10000 needs more than the encoder's"
    ):
        check_stage(tmp_path, stage)


@pytest.mark.slow
def test_a_notice_during_rollouts_stops_before_the_step_and_loses_nothing(
    tmp_path, prompts, monkeypatch
):
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    whole, metrics = run_stage(stage_config(tmp_path / "whole", prompts, steps=2))
    stopped = stage_config(tmp_path / "stopped", prompts, steps=2)
    with monkeypatch.context() as patched:
        patched.setattr(
            PreemptionNotice,
            "should_stop",
            lambda signal, step, within_step=False: step == 2 and within_step,
        )
        with pytest.raises(
            InterruptedRunError, match="stopped at step 1 of stage 'rlvr', and saved"
        ):
            run_stage(dataclasses.replace(stopped, checkpoint=CheckpointConfig(every_steps=0)))
    after, again = run_stage(stopped)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, after, whole)))
    assert [line["loss"] for line in again] == [line["loss"] for line in metrics]


@pytest.mark.parametrize("error", [ValueError, MemoryError])
def test_any_error_saves_the_run_first(tmp_path, prompts, monkeypatch, error):
    def fail(rewards, record):
        raise error("unexpected")

    monkeypatch.setattr(RewardFunction, "check_record", fail)
    config = stage_config(tmp_path, prompts, steps=1)
    with pytest.raises(error, match="unexpected"):
        run_stage(dataclasses.replace(config, checkpoint=CheckpointConfig(every_steps=0)))
    assert (tmp_path / "run" / "checkpoints" / "0_rlvr" / "0").is_dir()


@pytest.mark.slow
def test_a_diverged_stage_writes_a_diagnosis(tmp_path, prompts, monkeypatch):
    monkeypatch.setattr(
        "stepaudio_jax.rl.policy_update.where_weighted", lambda x, weights: x * jnp.nan
    )
    config = dataclasses.replace(stage_config(tmp_path, prompts, steps=2), max_consecutive_skips=0)
    with pytest.raises(DivergedError, match=r"step 1: .* last 1 updates; see .*/diagnosis/rlvr_1"):
        run_stage(config)
    folder = tmp_path / "run" / "diagnosis" / "rlvr_1"
    (step,) = json.loads((folder / "steps.json").read_text(encoding="utf-8"))
    assert np.isnan(step["loss"])
    assert json.loads((folder / "data_state.json").read_text(encoding="utf-8")) == {"kl_coef": 0.01}
    with np.load(folder / "batch_0.npz") as arrays:
        assert arrays["batches.0.tokens"].shape == (4, 160)
        assert arrays["targets.0.advantages"].shape == (4, 160)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "steps_saved"),
    [("rewards", 1), ("before the update", 1), ("after the update", None), ("samples", 2)],
)
def test_an_error_within_a_step_leaves_whole_steps_to_resume_from(
    tmp_path, prompts, three_steps, monkeypatch, where, steps_saved
):
    broken = stage_config(tmp_path, prompts, steps=3)
    calls = []

    def failing(method, *, late=False):
        def call(*arguments, **options):
            calls.append(None)
            result = method(*arguments, **options) if late or len(calls) != 2 else None
            if len(calls) == 2:
                raise RuntimeError("in the second step")
            return result

        return call

    with monkeypatch.context() as patched:
        if where == "rewards":
            patched.setattr(RewardFunction, "__call__", failing(RewardFunction.__call__))
        elif where == "samples":
            patched.setattr(SampleWriter, "write", failing(SampleWriter.write))
        else:
            patched.setattr(
                PolicyIteration,
                "update",
                failing(PolicyIteration.update, late=where == "after the update"),
            )
        with pytest.raises(RuntimeError, match="in the second step"):
            run_stage(dataclasses.replace(broken, checkpoint=CheckpointConfig(every_steps=0)))
    saved = [
        int(path.name) for path in (tmp_path / "run" / "checkpoints" / "0_rlvr").glob("[0-9]*")
    ]
    assert saved == ([] if steps_saved is None else [steps_saved])
    after, _ = run_stage(broken)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, after, three_steps[0])))


def test_a_judge_without_its_key_is_rejected_before_anything_is_read(
    tmp_path, prompts, monkeypatch
):
    stage = stage_config(tmp_path, prompts, steps=1).stages[0]
    judge = JudgeConfig(url="http://localhost:1/v1", model="m", api_key_env="NO_SUCH_KEY")
    stage = dataclasses.replace(
        stage, objective=dataclasses.replace(stage.policy_gradient, judge=judge)
    )
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"the environment variable NO_SUCH_KEY holds no key"):
        check_stage(tmp_path, stage)
    monkeypatch.setenv("NO_SUCH_KEY", "k")
    check_stage(tmp_path, stage)
