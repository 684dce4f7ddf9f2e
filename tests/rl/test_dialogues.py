"""Rollouts of several turns: contexts, masks, seeds, ends; training has the same probabilities."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from stepaudio_jax.audio.lengths import audio_embeddings_per_chunk
from stepaudio_jax.config import (
    DataConfig,
    MeshConfig,
    PolicyGradient,
    RewardConfig,
    RolloutConfig,
    SimulatedUserConfig,
)
from stepaudio_jax.data import Record
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.errors import DataError, SimulatedUserError
from stepaudio_jax.generation import Engine, build_prompt, check_prompt_fits
from stepaudio_jax.models import abstract_model
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.rl.advantages import PolicyLogprobs, compute_advantages, compute_loss_weights
from stepaudio_jax.rl.audio_features import AudioFeatureEncoder
from stepaudio_jax.rl.dialogues import DialogueGenerator
from stepaudio_jax.rl.metrics import dialogue_metrics
from stepaudio_jax.rl.packing import PackedRollouts
from stepaudio_jax.rl.policy_update import token_logprobs
from stepaudio_jax.rl.rewards import Reward
from stepaudio_jax.rl.rollouts import generate_rollouts
from stepaudio_jax.rl.simulated_user import make_simulated_user
from stepaudio_jax.text import AudioPart, Message, TextPart, render_prompt
from tests.generation.small_model import write_clip
from tests.rl.simulated_user import END, user_server, write_speaker
from tests.rl.small_stage import BASE, FLOAT32, base

DATA = DataConfig(batch_size=2, seq_len=320, audio_chunks_per_seq=4, mel_frames_per_chunk=160)
NEW_TOKENS = 40
SEED = 5


def records(folder):
    """Returns a dialogue in words, and one that begins with a clip; each knows its scenario."""
    clip = write_clip(folder / "clip.wav", 0.5)
    clip = dataclasses.replace(clip, transcript="Listen to this.")
    words = (
        Message("system", (TextPart("Be brief."),)),
        Message("user", (TextPart("What is 3 plus 4?"),)),
    )
    sound = (Message("user", (clip, TextPart("Make up a sum."))),)
    return [
        Record("words", words, "s", "file:1", scenario="You are nine years old."),
        Record("sound", sound, "s", "file:2"),
    ]


class Stage:
    """The model and what generates dialogues with it."""

    def __init__(self, folder):
        self.records = records(folder)
        model = base()
        self.tokenizer = model.tokenizer
        self.encode = AudioFeatureEncoder(model.config, FLOAT32, DATA, make_mesh(MeshConfig()))
        prompts = [self.prompt(record.messages) for record in self.records]
        self.features = self.encode(model.parameters, prompts)
        module = nnx.merge(abstract_model(model.config, FLOAT32)[0], model.parameters)
        self._logprobs = jax.jit(lambda batch: token_logprobs(module, batch, 1.0)[0])
        self.engine = Engine(
            model.config,
            model.parameters,
            model.tokenizer,
            compute=FLOAT32,
            slots=4,
            slot_tokens=DATA.seq_len,
        )

    def prompt(self, messages, history_reasoning=False):
        """Builds a prompt as every program does."""
        segments = render_prompt(messages, self.tokenizer, history_reasoning=history_reasoning)
        return build_prompt(segments, self.tokenizer, base().config.length_convention)

    def rollouts(
        self,
        url=None,
        *,
        seed=SEED,
        generations=2,
        cache=None,
        seq_len=DATA.seq_len,
        history_reasoning=False,
        **settings,
    ):
        """Generates dialogues, in order."""
        user = SimulatedUserConfig(
            **{"url": url, "model": "user", "api_key_env": None, "retries": 0, **settings}
        )
        config = RolloutConfig(
            num_generations=generations, max_new_tokens=NEW_TOKENS, simulated_user=user
        )
        simulated = make_simulated_user(user, dtype="float32", cache=cache)

        def check_fits(prompt):
            try:
                check_prompt_fits(prompt, base().config, new_tokens=NEW_TOKENS, slot_tokens=seq_len)
            except ValueError as error:
                raise DataError(str(error), kind="too_long") from None

        generate = DialogueGenerator(
            config,
            simulated,
            self.tokenizer,
            convention=base().config.length_convention,
            channel="first",
            history_reasoning=history_reasoning,
            check_fits=check_fits,
        )
        try:
            made = generate(
                self.engine,
                self.features.prompts,
                self.records,
                seed,
                lambda prompts: self.encode(base().parameters, prompts),
            )
            return [rollout for _, rollout in sorted(made, key=lambda item: item[0])]
        finally:
            simulated.close()

    def logprobs(self, rollouts, shared):
        """Computes the trainer's log-probabilities of what the policy wrote."""
        packed = PackedRollouts(rollouts, DATA, shared=shared)
        batch = packed.batch(self.features.by_prompt, self.tokenizer.special.pad)
        return packed.gather(np.asarray(self._logprobs(batch)))


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Stage(tmp_path_factory.mktemp("dialogues"))


@pytest.fixture(scope="module")
def server():
    server = user_server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def spoken(stage, server, tmp_path_factory):
    """Dialogues of three turns whose user speaks."""
    command = write_speaker(tmp_path_factory.mktemp("speaker"))
    return stage.rollouts(server.url, speak=command)


@pytest.fixture(scope="module")
def written(stage, server):
    """Dialogues of three turns whose user writes."""
    return stage.rollouts(server.url)


def same(ours, theirs):
    return all(
        [turn.message for turn in first.user_turns] == [turn.message for turn in other.user_turns]
        and np.array_equal(first.completion_tokens, other.completion_tokens)
        and np.array_equal(first.sampler_logprobs, other.sampler_logprobs)
        for first, other in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("kind", ["written", "spoken"])
def test_each_reply_is_sampled_in_the_prompt_of_the_dialogue_so_far(request, stage, kind):
    """An independent rendering of the dialogue up to a reply has the tokens of its context."""
    rollouts = request.getfixturevalue(kind)
    turns = [len(rollout.turns) for rollout in rollouts]
    assert max(turns) == 3
    assert sum(turns) >= 10
    for rollout in rollouts:
        for number, turn in enumerate(rollout.turns):
            messages = (*rollout.record.messages, *rollout.continuation[: 2 * number])
            expected = stage.prompt(messages)
            np.testing.assert_array_equal(turn.prompt_tokens, expected.tokens)
            np.testing.assert_array_equal(turn.is_audio, expected.is_audio)
            assert turn.chunk_tokens == expected.chunk_tokens
            thoughts = [earlier.parsed.reasoning for earlier in rollout.turns[:number]]
            context = stage.tokenizer.decode(turn.prompt_tokens)
            assert not any(thought and thought in context for thought in thoughts)


@pytest.mark.parametrize("kind", ["written", "spoken"])
@pytest.mark.parametrize("shared", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_training_has_the_log_probabilities_of_sampling(request, stage, kind, shared):
    rollouts = request.getfixturevalue(kind)
    for rollout, logprobs in zip(rollouts, stage.logprobs(rollouts, shared), strict=True):
        np.testing.assert_allclose(logprobs, rollout.sampler_logprobs, rtol=0, atol=2e-4)


def test_spoken_words_are_clips_that_are_heard(stage, spoken, written):
    for rollout in spoken:
        for turn in rollout.user_turns:
            (part,) = turn.message.parts
            assert isinstance(part, AudioPart)
            assert part.transcript.startswith("Turn ")
            assert len(load_clip(part)) == 6400  # 0.4 s
            assert turn.features.shape[0] == 1
    assert all(turn.message.text for rollout in written for turn in rollout.user_turns)
    # Other sound gives other log-probabilities.
    silent = [
        dataclasses.replace(
            rollout,
            user_turns=tuple(
                dataclasses.replace(turn, features=np.zeros_like(turn.features))
                for turn in rollout.user_turns
            ),
        )
        for rollout in spoken
    ]
    heard, unheard = (stage.logprobs(items, shared=True) for items in (spoken, silent))
    first = len(spoken[0].turns[0].completion_tokens)
    np.testing.assert_array_equal(heard[0][:first], unheard[0][:first])
    assert np.abs(heard[0][first:] - unheard[0][first:]).max() > 1e-3


def test_a_rows_clips_are_those_of_its_own_dialogue(spoken):
    """Each clip's features are one number: 7 of the record, 100 dialogue + turn of the user."""
    packed = PackedRollouts(spoken, DATA, shared=True)
    marks = [
        [
            np.full_like(turn.features, 100 * number + index)
            for index, turn in enumerate(rollout.user_turns, 1)
        ]
        for number, rollout in enumerate(spoken)
    ]
    nothing = np.zeros((0, 0, 0), np.float32)
    batch = packed.batch([nothing, np.full_like(marks[0][0], 7.0)], 0, marks)
    per_chunk = audio_embeddings_per_chunk(DATA.mel_frames_per_chunk)
    is_target = packed.scatter(
        [np.ones(len(rollout.completion_tokens), np.float32) for rollout in spoken]
    )
    sequences = []
    for row in range(packed.num_rows):
        for segment in np.unique(batch.segment_ids[row][is_target[row] > 0]):
            here = batch.segment_ids[row] == segment
            (prefix,) = np.unique(batch.prefix_ids[row][here])
            sees = here | (batch.segment_ids[row] == prefix)
            indices = batch.audio_index[row][sees]
            chunks = dict.fromkeys(int(index) // per_chunk for index in indices if index >= 0)
            heard = [float(batch.features[row, chunk, 0, 0]) for chunk in chunks]
            targets = batch.targets[row][here & (is_target[row] > 0)]
            sequences.append((heard, targets.tolist()))
    expected = [
        (
            [7.0] * (number >= 2) + [100.0 * number + index for index in range(1, turn + 1)],
            reply.completion_tokens.tolist(),
        )
        for number, rollout in enumerate(spoken)
        for turn, reply in enumerate(rollout.turns)
    ]
    assert sorted(sequences) == sorted(expected)


def test_loss_is_on_all_of_the_policys_tokens_and_on_no_others(written):
    packed = PackedRollouts(written, DATA, shared=True)
    ones = [np.ones(len(rollout.completion_tokens), np.float32) for rollout in written]
    mask = packed.scatter(ones)
    assert mask.sum() == sum(
        len(turn.completion_tokens) for rollout in written for turn in rollout.turns
    )
    values = [np.arange(len(rollout.completion_tokens), dtype=np.float32) for rollout in written]
    for ours, theirs in zip(packed.gather(packed.scatter(values)), values, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_dialogue_has_one_reward_and_its_group_is_of_dialogues(written):
    config = PolicyGradient(
        rewards=(RewardConfig(format_weight=1.0),), aggregation="sequence_mean", kl_coef=0.0
    )
    rewards = [Reward(value, {}) for value in (1.0, 0.0, 0.25, 0.75)]
    none = PolicyLogprobs(
        None, None, [np.zeros(len(r.completion_tokens), np.float32) for r in written]
    )
    made = compute_advantages(written, rewards, none, config, kl_coef=0.0)
    for of_rollout, value in zip(made.advantages, (1.0, -1.0, -0.5, 0.5), strict=True):
        np.testing.assert_allclose(of_rollout, value)  # every token of every turn
    weights = compute_loss_weights(written, made.valid, config)
    np.testing.assert_allclose([of_rollout.sum() for of_rollout in weights], 0.25, rtol=1e-6)


def test_the_user_sees_the_dialogue_from_its_side(stage, server, written):
    bodies = [body for _, _, body in server.requests]
    (body,) = {
        json.dumps(body): body
        for body in bodies
        if len(body["messages"]) == 6
        and "nine years" in body["messages"][0]["content"]
        and body["messages"][3]["content"] == written[0].turns[0].parsed.reply
        and body["messages"][-1]["content"] == written[0].turns[1].parsed.reply
        and body["messages"][4]["content"] == written[0].user_turns[0].message.text
    }.values()
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert END in body["messages"][0]["content"]
    assert body["messages"][2]["content"] == "What is 3 plus 4?"
    assert "Be brief." not in json.dumps(body)  # the system's turn is for the policy
    assert all(
        thought not in json.dumps(body)
        for thought in (turn.parsed.reasoning for turn in written[0].turns)
        if len(thought) > 3
    )
    heard = [body for body in bodies if "Listen to this." in json.dumps(body["messages"][2])]
    assert heard
    seeds = {body["seed"] for body in bodies if len(body["messages"]) == 4}
    assert len(seeds) == 4  # one for each dialogue, spoken and written alike


def test_the_draws_depend_on_seed_prompt_sample_and_turn(stage, server, written):
    assert same(stage.rollouts(server.url), written)
    assert not same(stage.rollouts(server.url, seed=SEED + 1), written)
    tokens = [tuple(rollout.turns[1].completion_tokens) for rollout in written]
    assert len(set(tokens)) > 1
    # The first replies are those of rollouts of one turn.
    config = RolloutConfig(num_generations=2, max_new_tokens=NEW_TOKENS)
    alone = generate_rollouts(
        stage.engine, stage.features.prompts, stage.records, config, stage.tokenizer, SEED
    )
    for index, rollout in alone:
        np.testing.assert_array_equal(
            rollout.completion_tokens, written[index].turns[0].completion_tokens
        )


def test_answers_are_kept_and_a_repeated_step_has_the_same_words(stage, tmp_path):
    """The server would answer otherwise a second time."""
    count = iter(range(1000))
    server = user_server(lambda body: f"Number {next(count)}.")
    try:
        first = stage.rollouts(server.url, cache=tmp_path / "user.jsonl")
        asked = len(server.requests)
        again = stage.rollouts(server.url, cache=tmp_path / "user.jsonl")
        assert len(server.requests) == asked == 8
        assert same(first, again)
        assert not same(stage.rollouts(server.url), first)
    finally:
        server.close()


def test_a_user_that_was_mended_is_asked_again(stage, tmp_path):
    """Empty words were an answer too, and must not stay in the file."""
    words = {"text": ""}
    server = user_server(lambda body: words["text"])
    try:
        with pytest.raises(SimulatedUserError, match=r"failed in 4 of 4 .*it wrote nothing"):
            stage.rollouts(server.url, cache=tmp_path / "user.jsonl")
        words["text"] = "What is 1 plus 3?"
        rollouts = stage.rollouts(server.url, cache=tmp_path / "user.jsonl", turns=2)
        assert len(server.requests) == 8
    finally:
        server.close()
    assert all(rollout.user_turns for rollout in rollouts)


def test_dialogues_end_by_the_user_by_length_and_without_words(stage):
    def write(body):
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        if "Make up" in json.dumps(body["messages"][2]):
            return f"Bye. {END}" if turn == 2 else "And then?"
        return " \n"

    server = user_server(write)
    try:
        rollouts = stage.rollouts(server.url, max_failure_rate=0.5)
    finally:
        server.close()
    assert [rollout.end for rollout in rollouts] == ["failed", "failed", "user", "user"]
    assert [len(rollout.turns) for rollout in rollouts] == [1, 1, 2, 2]
    metrics = dialogue_metrics(rollouts, stage.tokenizer)
    assert metrics["turns"] == 1.5
    assert metrics["user_failures"] == 2
    assert metrics["ended_by_user"] == metrics["ended_by_failed"] == 0.5
    words = len(stage.tokenizer.encode("And then?"))
    assert metrics["user_tokens_turn_1"] == words
    assert metrics["reply_tokens_turn_2"] > 0
    assert "user_tokens_turn_2" not in metrics


def test_a_dialogue_that_does_not_fit_a_row_ends_before_the_users_turn(stage):
    server = user_server(lambda body: "word " * 60)
    try:
        rollouts = stage.rollouts(server.url, seq_len=120)
    finally:
        server.close()
    assert [(rollout.end, len(rollout.turns)) for rollout in rollouts] == [("length", 1)] * 4
    assert all(not rollout.user_turns for rollout in rollouts)


@pytest.mark.parametrize(
    ("settings", "trouble", "message"),
    [
        (
            {},
            500,
            r"failed in [1-4] of 4 dialogues, .* allows; the first one: file:1: http://\S+ has no "
            r"answer after 1 attempts; the last one: status 500",
        ),
        (
            {"speak": ("false",)},
            None,
            r"file:1: speak: false ended with the exit code 1; it said: nothing",
        ),
        ({"speak": ("yes",)}, None, r"speak: yes wrote more than 67108864 bytes"),
        ({"speak": ("true", "{output}")}, None, r"wrote no file to \{output\} \(No such file"),
        ({"speak": ("true",)}, None, r"speak: true ended, and its output is empty"),
        ({"speak": ("cp", "/dev/null", "{output}")}, None, r"the file \{output\} is empty"),
        ({"speak": ("echo", "no sound")}, None, r"the sound of its words cannot be used, it "),
        (
            {"speak": ("sleep", "60"), "speak_timeout_s": 0.2},
            None,
            r"sleep took longer than speak_timeout_s=0.2",
        ),
        (
            {"speak": ("no-such-program",)},
            None,
            r"speak: no-such-program cannot be run \(No such file",
        ),
    ],
)
def test_a_user_that_fails_too_often_ends_the_run_with_a_reason(
    stage, server, settings, trouble, message
):
    if trouble is not None:
        server.trouble = lambda number, handler: handler.reply(trouble, {}) or True
    try:
        with pytest.raises(SimulatedUserError, match=message):
            stage.rollouts(server.url, **settings)
    finally:
        server.trouble = lambda number, handler: False
    assert not stage.engine.busy


def test_arguments_of_the_speech_command_are_not_read_by_a_shell(stage, tmp_path):
    marker = tmp_path / "marker"
    command = write_speaker(tmp_path)
    server = user_server(lambda body: f"$(touch {marker}); `touch {marker}` 'it' \"is\"\nwhat")
    try:
        rollouts = stage.rollouts(server.url, turns=2, speak=(*command, "{output}"))
    finally:
        server.close()
    assert not marker.exists()
    assert rollouts[0].user_turns[0].message.audio[0].transcript.endswith("\nwhat")


@pytest.mark.slow
def test_past_reasoning_stays_where_the_stage_keeps_it(stage, server):
    rollouts = stage.rollouts(server.url, history_reasoning=True, generations=1)
    for rollout in rollouts:
        messages = (*rollout.record.messages, *rollout.continuation[:4])
        expected = stage.prompt(messages, history_reasoning=True)
        np.testing.assert_array_equal(rollout.turns[2].prompt_tokens, expected.tokens)


@pytest.mark.slow  # another model, and its programs
def test_a_model_in_the_process_plays_the_user_bit_for_bit(stage, tmp_path):
    options = {"url": None, "model": None, "folder": str(BASE), "max_tokens": 60, "turns": 2}
    first = stage.rollouts(max_failure_rate=1.0, **options)
    spoke = [rollout for rollout in first if rollout.user_turns]
    assert spoke
    assert len({rollout.user_turns[0].message.text for rollout in spoke}) > 1  # drawn by seeds
    assert same(stage.rollouts(max_failure_rate=1.0, **options), first)
