"""What a teacher is given: sound, or transcripts; on the mesh, or behind a server."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from stepaudio_jax.config import Distillation, PolicyGradient, RolloutConfig, TeacherEndpointConfig
from stepaudio_jax.data import read_records
from stepaudio_jax.errors import ConfigError, DataError, EndpointError
from stepaudio_jax.generation import Prompt
from stepaudio_jax.parallel import BatchPlacement, make_mesh
from stepaudio_jax.rl.packing import Minibatch, PackedRollouts
from stepaudio_jax.rl.rollouts import PolicyTurn, Rollout, UserTurn
from stepaudio_jax.rl.teacher import TeacherScorer, teacher_check
from stepaudio_jax.rl.trainer import PolicyTrainer
from stepaudio_jax.text import (
    THINK_END,
    AudioPart,
    Message,
    TextPart,
    parse_reply,
    with_transcripts,
)
from stepaudio_jax.training.preemption import PreemptionNotice
from stepaudio_jax.training.stage_context import StageContext
from tests.generation.small_model import write_clip
from tests.rl.prompt_logprob_server import PromptLogprobServer, logprobs_of
from tests.rl.small_stage import BASE, base, run_stage, stage_config

ROLLOUT = RolloutConfig(num_prompts=2, num_generations=2, max_new_tokens=24, slots=4)
SAID, ANSWERED = "And what is it now?", "It is low."
REPLIES = ("3 plus 4 is 7.", "I do not know.", "seven", "It is a low tone.")


@pytest.fixture
def server():
    server = PromptLogprobServer()
    yield server
    server.close()


@pytest.fixture
def prompts(tmp_path):
    """Writes two prompts with a clip that has a transcript, one of them with text beside it."""
    write_clip(tmp_path / "a.wav", 0.5, seed=1)
    clip = {"type": "audio", "audio": "a.wav", "transcript": "What is 3 plus 4?"}
    rows = [[clip], [{"type": "text", "text": "Answer."}, clip]]
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": parts}]}) + "\n" for parts in rows
        ),
        encoding="utf-8",
    )
    return path


def distillation(**settings):
    return Distillation(**{"on_policy": True, "rollout": ROLLOUT, **settings})


def endpoint(server):
    return TeacherEndpointConfig(url=server.url, model="m", api_key_env=None, retries=0)


def config_of(folder, prompts, objective, steps=2):
    config = stage_config(folder, prompts, steps=steps)
    stage = dataclasses.replace(config.stages[0], objective=objective)
    return dataclasses.replace(config, stages=(stage,))


def score(config, rollouts):
    """Returns the teacher's log-probabilities of rollouts without sound of their own."""
    mesh = make_mesh(config.mesh)
    context = StageContext(config, 0, base().config, base().tokenizer, mesh, PreemptionNotice())
    data = config.stages[0].data
    placement = BatchPlacement(data, config.compute.rules, mesh)

    def place(rows):
        starts = range(0, jax.tree.leaves(rows)[0].shape[0], data.batch_size)
        return [
            placement(jax.tree.map(lambda leaf, at=at: leaf[at : at + data.batch_size], rows))
            for at in starts
        ]

    with jax.set_mesh(mesh):
        scorer = TeacherScorer(context, place, shares_prompts=True)
        packed = PackedRollouts(rollouts, data, shared=True)
        minibatch = Minibatch(slice(0, len(rollouts)), packed, [])
        return scorer(rollouts, [minibatch], [])


def rollouts_to(prompts):
    """Returns two replies to each prompt; the last dialogue goes on with a spoken turn."""
    rollouts = []
    for number, text in enumerate(REPLIES):
        record = list(read_records(prompts))[number // 2]
        rollouts.append(Rollout(number // 2, record, (policy_turn(text, clips=1),)))
    sound = Prompt(np.arange(5), np.ones(5, bool), np.zeros(5, bool), (), (5,))
    said = Message("user", (AudioPart("b.wav", transcript=SAID),))
    features = np.zeros((1, 5, 4), np.float32)
    turns = (policy_turn(f"So.{THINK_END}{ANSWERED}", clips=1), policy_turn("Low.", clips=2))
    last = dataclasses.replace(
        rollouts[-1], turns=turns, user_turns=(UserTurn(said, sound, features),)
    )
    return [*rollouts[:-1], last]


def policy_turn(text, *, clips):
    """Returns a reply to a prompt with clips of five tokens each."""
    tokens = np.array(base().tokenizer.encode(text), np.int32)
    return PolicyTurn(
        prompt_tokens=np.arange(5 * clips + 5, dtype=np.int32),
        is_audio=np.arange(5 * clips + 5) < 5 * clips,
        chunk_tokens=(5,) * clips,
        completion_tokens=tokens,
        sampler_logprobs=np.zeros(tokens.size, np.float32),
        parsed=parse_reply(tokens.tolist(), base().tokenizer),
        truncated=False,
    )


def test_by_transcript_folder_and_server_give_what_the_model_gives_of_the_text(
    tmp_path, prompts, server
):
    rollouts = rollouts_to(prompts)
    by_folder, by_server = (
        score(config_of(tmp_path / name, prompts, objective), rollouts)
        for name, objective in (
            ("folder", distillation(teacher=str(BASE), teacher_inputs="transcripts")),
            (
                "server",
                distillation(teacher_endpoint=endpoint(server), teacher_inputs="transcripts"),
            ),
        )
    )
    encode, special = base().tokenizer.encode, base().tokenizer.special
    for number, rollout in enumerate(rollouts):
        read = ("" if number < 2 else "Answer.\n") + "What is 3 plus 4?"
        prompt = [
            *(special.bot, *encode(f"human\n{read}"), special.eot),
            *(special.bot, *encode("assistant\n<think>\n")),
        ]
        first, *later = rollout.turns
        expected = logprobs_of([*prompt, *first.completion_tokens])[len(prompt) :]
        for turn in later:  # its context has what was said, without the reasoning
            prompt = [
                *(special.bot, *encode(f"human\n{read}"), special.eot),
                *(special.bot, *encode(f"assistant\n{ANSWERED}"), special.eot),
                *(special.bot, *encode(f"human\n{SAID}"), special.eot),
                *(special.bot, *encode("assistant\n<think>\n")),
            ]
            of_turn = logprobs_of([*prompt, *turn.completion_tokens])[len(prompt) :]
            expected = np.concatenate([expected, of_turn])
        np.testing.assert_allclose(by_folder[number], expected, atol=2e-5)
        np.testing.assert_allclose(by_server[number], expected, atol=1e-6)


def test_transcripts_stand_in_the_place_of_clips():
    def dialogue(*parts):
        parts = tuple(TextPart(part) if isinstance(part, str) else part for part in parts)
        return [Message(role="user", parts=parts)]

    clip, other = AudioPart("a.wav", transcript="one"), AudioPart("b.wav", transcript=" two")
    for parts, text in (
        ((clip,), "one"),
        (("Say: ", clip), "Say: one"),
        (("Say", clip, "again", "st"), "Say\none\nagainst"),
        ((clip, "", "x"), "one\nx"),
        ((clip, clip, other, " three"), "one\none two three"),
    ):
        (message,) = with_transcripts(dialogue(*parts))
        assert message.parts == (TextPart(text),)
    text_only = dialogue("a", "b")
    assert with_transcripts(text_only) == tuple(text_only)


@pytest.mark.parametrize("transcript", [None, " "])
def test_records_that_a_teacher_cannot_read_are_named(tmp_path, prompts, transcript, server):
    row = {"type": "audio", "audio": "a.wav", "transcript": transcript}
    with prompts.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": [row]}]}) + "\n")
    with_sound, _, without = read_records(prompts)

    def check(record, **settings):
        config = config_of(tmp_path / "check", prompts, distillation(**settings))
        mesh = make_mesh(config.mesh)
        context = StageContext(config, 0, base().config, base().tokenizer, mesh, PreemptionNotice())
        teacher_check(config.stages[0].policy_gradient, context)(record)

    check(without, teacher=str(BASE))
    check(with_sound, teacher=str(BASE), teacher_inputs="transcripts")
    with pytest.raises(DataError, match=r"prompts.jsonl:3: .*a\.wav.* has no transcript"):
        check(without, teacher=str(BASE), teacher_inputs="transcripts")
    with pytest.raises(DataError, match=r"prompts.jsonl:1: .*teacher_inputs='transcripts'"):
        check(with_sound, teacher_endpoint=endpoint(server))
    long = dataclasses.replace(
        with_sound,
        messages=(Message(role="user", parts=(AudioPart("a.wav", transcript="word " * 200),)),),
    )
    with pytest.raises(DataError, match=r"with transcripts in place of its clips .* seq_len=160"):
        check(long, teacher=str(BASE), teacher_inputs="transcripts")


def test_settings_that_contradict_each_other_are_refused():
    server = TeacherEndpointConfig(url="http://localhost:1/v1", model="m")
    for settings, message in (
        ({"teacher": None}, "there is no teacher"),
        ({"teacher": "a", "teacher_endpoint": server}, "are two teachers"),
        ({"teacher_endpoint": server, "on_policy": False}, "only the reverse KL"),
        (
            {
                "teacher_endpoint": server,
                "rollout": dataclasses.replace(ROLLOUT, temperature=0.7),
            },
            "rollout.temperature=0.7",
        ),
    ):
        settings = {"rollout": ROLLOUT, **settings}
        if not settings.get("on_policy", True):
            del settings["rollout"]
        with pytest.raises(ConfigError, match=message):
            Distillation(**{"on_policy": True, **settings})
    with pytest.raises(ConfigError, match="belong together"):
        TeacherEndpointConfig(url="http://localhost:1/v1")
    with pytest.raises(ConfigError, match="must begin with http"):
        TeacherEndpointConfig(url="localhost:1", model="m")
    with pytest.raises(ConfigError, match="needs kl_coef above 0"):
        PolicyGradient(teacher_endpoint=server, kl_coef=0.0)
    with pytest.raises(ConfigError, match="teacher_inputs='transcripts' is for a teacher"):
        PolicyGradient(teacher_inputs="transcripts")


@pytest.mark.slow
def test_a_run_by_a_server_is_a_run_by_the_folder_and_survives_its_outage(
    tmp_path, prompts, server
):
    lines = {}
    for name, teacher in (
        ("folder", {"teacher": str(BASE)}),
        ("server", {"teacher_endpoint": endpoint(server)}),
    ):
        objective = distillation(teacher_inputs="transcripts", **teacher)
        _, lines[name] = run_stage(config_of(tmp_path / name, prompts, objective))
    for ours, theirs in zip(lines["folder"], lines["server"], strict=True):
        assert ours["kl"] > 0
        for key in ("loss", "kl", "reply_kl"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3, abs=1e-5), key
    # The server goes away after the first step's answers: that step is kept.
    objective = distillation(teacher_inputs="transcripts", teacher_endpoint=endpoint(server))
    config = config_of(tmp_path / "outage", prompts, objective)
    answer = server.trouble
    answered = len(server.requests) + 1 + ROLLOUT.num_prompts * ROLLOUT.num_generations

    def refuse_later(number, handler):
        if number <= answered:
            return answer(number, handler)
        handler.reply(503, {"error": "busy"})
        return True

    server.trouble = refuse_later
    with pytest.raises(EndpointError, match="status 503"):
        run_stage(config)
    server.trouble = answer
    _, resumed = run_stage(config)
    for ours, theirs in zip(resumed, lines["server"], strict=True):
        assert ours["kl"] == theirs["kl"]


@pytest.mark.slow
def test_the_check_before_a_run_asks_the_server(tmp_path, prompts, server):
    server.close()
    objective = distillation(teacher_inputs="transcripts", teacher_endpoint=endpoint(server))
    config = config_of(tmp_path / "gone", prompts, objective)
    context = StageContext(
        *(config, 0, base().config, base().tokenizer, make_mesh(config.mesh), PreemptionNotice())
    )
    with pytest.raises(ConfigError, match=r"objective\.teacher_endpoint: .*no answer after"):
        PolicyTrainer(context).check_data(None)
