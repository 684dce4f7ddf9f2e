"""The engine: greedy decoding against transformers, its cache, seeds, and how a reply ends."""

import dataclasses

import numpy as np
import pytest
import torch

from stepaudio_jax.config import RepetitionDetectionConfig
from stepaudio_jax.errors import GenerationError
from stepaudio_jax.generation import Engine, Prompt, Sampling, build_prompt
from stepaudio_jax.text import Message, TextPart, render_prompt
from tests.generation.small_model import (
    BYTES,
    CONFIG,
    TorchDialogue,
    peaked_parameters,
    user,
    write_clip,
)
from tests.models import torch_reference
from tests.models.random_model import FLOAT32

GREEDY = Sampling(temperature=0.0, max_new_tokens=48)
CLEAR = 1e-3  # logits are computed to about 1e-5


def make_engine(parameters, tokenizer=BYTES, **settings):
    return Engine(CONFIG, parameters, tokenizer, compute=FLOAT32, **{"slots": 4, **settings})


@pytest.fixture(scope="module")
def parameters():
    """The weights of a model that never ends its turn."""
    parameters = peaked_parameters()
    parameters["decoder"]["lm_head"]["kernel"][:, BYTES.special.eot] = 0
    return parameters


@pytest.fixture(scope="module")
def engine(parameters):
    return make_engine(parameters)


def text_prompt(length, seed):
    tokens = (
        np.random.default_rng(seed)
        .integers(0, CONFIG.decoder.vocab_size, size=length)
        .astype(np.int32)
    )
    return Prompt(tokens, np.zeros(length, bool), np.zeros(length, bool), (), ())


def answer(engine, prompts, samplings):
    completions = dict(engine.generate(prompts, samplings))
    return [completions[index] for index in range(len(prompts))]


def test_greedy_equals_transformers_generate(parameters):
    """64 prompts of 1 to 64 tokens, 128 new tokens, through 12 slots that are reused."""
    prompts = [
        text_prompt(1 + index, seed=index) for index in np.random.default_rng(0).permutation(64)
    ]
    samplings = [dataclasses.replace(GREEDY, max_new_tokens=128)] * 64
    completions = answer(make_engine(parameters, slots=12), prompts, samplings)
    oracle = torch_reference.qwen2(torch_reference.to_torch(parameters)["decoder"], CONFIG.decoder)
    longest = max(prompt.length for prompt in prompts)
    tokens, mask = np.zeros((2, 64, longest), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - prompt.length :] = prompt.tokens
        mask[row, longest - prompt.length :] = 1
    generated = oracle.generate(
        torch.tensor(tokens),
        attention_mask=torch.tensor(mask),
        do_sample=False,
        max_new_tokens=128,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.stack(generated.logits, dim=1)
    best = logits.topk(2, dim=-1).values
    assert (
        best[..., 0] - best[..., 1]
    ).min() > 5e-5  # else rounding could decide, and the test would say nothing
    expected = generated.sequences[:, longest:]
    assert len(expected.unique()) > 50  # nor would it of replies that are all the same
    assert [completion.tokens for completion in completions] == [
        tuple(row) for row in expected.tolist()
    ]
    logprobs = torch.log_softmax(logits, dim=-1).gather(2, expected[..., None])[..., 0]
    np.testing.assert_allclose(
        [completion.logprobs for completion in completions], logprobs.numpy(), atol=2e-4
    )
    assert {completion.finish_reason for completion in completions} == {"length"}


def test_audio_in_two_turns_equals_recomputing_everything_at_every_step(tmp_path, parameters):
    """Beside shorter prompts with a longer clip; the oracle is torch, which keeps no cache."""
    clips = [
        write_clip(tmp_path / f"{seed}.wav", seconds, seed)
        for seed, seconds in enumerate((0.6, 0.41, 0.9, 0.9))
    ]
    reply = Message(role="assistant", parts=(TextPart("high"),), reasoning="not shown")
    dialogues = [
        [user("What ", clips[0], "?"), reply, user(clips[1])],
        [user(clips[2])],
        [user(clips[3])],
    ]
    prompts = [
        build_prompt(render_prompt(messages, BYTES), BYTES, CONFIG.length_convention)
        for messages in dialogues
    ]
    *completions, other = answer(
        make_engine(parameters, slots=3),
        prompts,
        [dataclasses.replace(GREEDY, max_new_tokens=12)] * 3,
    )
    assert prompts[1].tokens.tolist() == prompts[2].tokens.tolist()
    assert (
        abs(completions[1].logprobs[0] - other.logprobs[0]) > CLEAR
    )  # sound matters, so the rest cannot pass deaf

    special = BYTES.special
    first = (
        TorchDialogue(parameters)
        .write(special.bot, "human\nWhat ")
        .hear(clips[0])
        .write("?", special.eot)
    )
    first.write(special.bot, "assistant\nhigh", special.eot, special.bot, "human\n").hear(clips[1])
    second = TorchDialogue(parameters).write(special.bot, "human\n").hear(clips[2])
    for dialogue, prompt, completion in zip((first, second), prompts[:2], completions, strict=True):
        dialogue.write(special.eot, special.bot, "assistant\n<think>\n")
        assert dialogue.tokens == prompt.tokens.tolist()
        for token, logprob in zip(completion.tokens, completion.logprobs, strict=True):
            following = dialogue.logprobs()[-1]
            best, next_best = np.argsort(following)[:-3:-1]
            assert following[best] - following[next_best] > CLEAR
            assert token == best
            assert logprob == pytest.approx(following[best], abs=2e-4)
            dialogue.write(int(token))


def test_a_seed_gives_its_tokens_alone_and_in_any_company(engine):
    prompts = [text_prompt(length, seed=length) for length in (30, 9, 45, 9, 17)]
    samplings = [
        Sampling(temperature=0.8, top_p=0.95, max_new_tokens=16, seed=seed)
        for seed in (7, 8, 9, 10, 7)
    ]
    together = answer(engine, prompts, samplings)
    for index in (0, 1, 4):
        assert answer(engine, [prompts[index]], [samplings[index]]) == [
            dataclasses.replace(
                together[index],
                logprobs=pytest.approx(together[index].logprobs, abs=1e-4),
                sampling_logprobs=pytest.approx(together[index].sampling_logprobs, abs=1e-4),
            )
        ]
    again = answer(
        engine,
        [prompts[1]] * 3,
        [samplings[1], dataclasses.replace(samplings[1], seed=99), samplings[1]],
    )
    assert again[0].tokens == again[2].tokens == together[1].tokens
    assert again[1].tokens != again[0].tokens


def test_logprobs_are_those_of_the_distribution_before_temperature_and_nucleus(engine, parameters):
    prompt = text_prompt(20, seed=5)
    sampling = Sampling(temperature=1.7, top_p=0.6, max_new_tokens=16, seed=3)
    (completion,) = answer(engine, [prompt], [sampling])
    oracle = torch_reference.qwen2(torch_reference.to_torch(parameters)["decoder"], CONFIG.decoder)
    sequence = torch.tensor([[*prompt.tokens.tolist(), *completion.tokens]])
    with torch.no_grad():
        log_probs = torch.log_softmax(oracle(sequence).logits[0, prompt.length - 1 : -1], dim=-1)
    logprobs = log_probs.gather(1, sequence[0, prompt.length :, None])[:, 0]
    np.testing.assert_allclose(completion.logprobs, logprobs.numpy(), atol=2e-4)


def test_a_reply_ends_at_a_stop_token_or_at_its_own_limit(engine):
    """A token of a greedy reply, made a stop token, cuts the same reply there."""
    prompts = [text_prompt(length, seed=40 + length) for length in (12, 25)]
    sampling = dataclasses.replace(GREEDY, max_new_tokens=16)
    first, second = (completion.tokens for completion in answer(engine, prompts, [sampling] * 2))
    end = next(index for index in range(3, 15) if first[index] not in (*first[:index], *second))
    stopping = dataclasses.replace(sampling, stop_tokens=(5, first[end]))
    requests = [(prompts[0], 16), (prompts[1], 16), (prompts[0], end + 1), (prompts[0], end)]
    completions = answer(
        engine,
        [prompt for prompt, _ in requests],
        [dataclasses.replace(stopping, max_new_tokens=limit) for _, limit in requests],
    )
    assert (
        [(completion.tokens, completion.finish_reason) for completion in completions]
        == [
            (first[:end], "stop"),
            (second, "length"),
            (first[:end], "stop"),  # the stop token as the last one allowed is a stop, not a cut
            (first[:end], "length"),
        ]
    )
    assert [len(completion.logprobs) for completion in completions] == [end, 16, end, end]


def test_the_end_of_the_turn_ends_a_reply(parameters):
    """The end of the turn gets the weights of a token that the model generates."""
    prompt = text_prompt(12, seed=52)
    (free,) = answer(make_engine(parameters), [prompt], [GREEDY])
    end = next(index for index in range(3, 40) if free.tokens[index] not in free.tokens[:index])
    head = parameters["decoder"]["lm_head"]["kernel"].copy()
    head[:, BYTES.special.eot] = 1.01 * head[:, free.tokens[end]]
    ending = {**parameters, "decoder": {**parameters["decoder"], "lm_head": {"kernel": head}}}
    (ended,) = answer(make_engine(ending), [prompt], [GREEDY])
    assert (ended.tokens, ended.finish_reason) == (free.tokens[:end], "stop")


def test_samples_of_one_prompt_share_its_prefill_and_differ_by_seed(parameters):
    prompt = text_prompt(30, seed=6)
    samplings = [Sampling(temperature=1.0, max_new_tokens=12, seed=seed) for seed in range(7)]
    engine = make_engine(parameters, slots=2)
    prefilled = []
    prefill = engine._prefill
    engine._prefill = lambda prompt: prefilled.append(prompt) or prefill(prompt)
    numbers = engine.submit(prompt, samplings)
    done = {output.request: output.completion for output in engine.run() if output.completion}
    assert len(prefilled) == 1
    assert len({done[number].tokens for number in numbers}) == 7
    alone = answer(make_engine(parameters), [prompt] * 7, samplings)
    assert [done[number].tokens for number in numbers] == [
        completion.tokens for completion in alone
    ]


def test_sampling_logprobs_are_those_of_what_was_drawn_from(engine):
    prompt = text_prompt(20, seed=8)
    plain, tempered, greedy = answer(
        engine,
        [prompt] * 3,
        [
            Sampling(temperature=1.0, max_new_tokens=8),
            Sampling(temperature=1.6, top_k=9, max_new_tokens=8),
            GREEDY,
        ],
    )
    np.testing.assert_allclose(plain.sampling_logprobs, plain.logprobs, atol=1e-5)
    assert np.abs(np.subtract(tempered.sampling_logprobs, tempered.logprobs)).max() > 0.1
    assert set(greedy.sampling_logprobs) == {0.0}


def test_a_reasoning_that_is_too_long_is_ended(engine):
    """The seventh token on is `\\n</think>\\n`, whatever the model would have generated."""
    prompt = text_prompt(15, seed=9)
    free, bounded = answer(
        engine, [prompt] * 2, [GREEDY, dataclasses.replace(GREEDY, max_reasoning_tokens=6)]
    )
    closing = BYTES.encode("\n</think>\n")
    assert bounded.tokens[:6] == free.tokens[:6]
    assert list(bounded.tokens[6 : 6 + len(closing)]) == closing
    assert len(bounded.tokens) == GREEDY.max_new_tokens
    assert (
        max(bounded.logprobs[6 : 6 + len(closing)]) < -1
    )  # the model did not expect them, and that is what is reported
    written = np.array([*prompt.tokens, *bounded.tokens[: 6 + len(closing)]], np.int32)
    prefix = Prompt(written, *[np.zeros(len(written), bool)] * 2, (), ())
    (rest,) = answer(
        engine, [prefix], [dataclasses.replace(GREEDY, max_new_tokens=48 - 6 - len(closing))]
    )
    assert bounded.tokens[6 + len(closing) :] == rest.tokens


def test_stop_strings_wait_for_the_reply(engine):
    """The prompt opens a reasoning, which is ended by force; stops count after its end."""
    tokens = np.array(BYTES.encode("Who? <think>\n"), np.int32)
    prompt = Prompt(tokens, *[np.zeros(len(tokens), bool)] * 2, (), ())
    free = dataclasses.replace(GREEDY, max_reasoning_tokens=6)
    (whole,) = answer(engine, [prompt], [free])
    text = b"".join(map(BYTES.token_bytes, whole.tokens))
    start = text.index(b"</think>\n") + len(b"</think>\n")
    stop = next(
        chr(byte)
        for byte in text[start + 3 :]
        if byte < 128 and byte not in text[start : start + 3]
    )  # no character of the reply's first three
    for stop_string, stop_in_reasoning, begin in (
        ("\n", False, start),
        (stop, False, start),
        ("\n", True, 0),
    ):
        stopping = dataclasses.replace(
            free, stop_strings=(stop_string,), stop_in_reasoning=stop_in_reasoning
        )
        (completion,) = answer(engine, [prompt], [stopping])
        place = text.find(stop_string.encode(), begin)
        assert b"".join(map(BYTES.token_bytes, completion.tokens)) == (
            text[:place] if place >= 0 else text
        )
        assert completion.finish_reason == ("stop" if place >= 0 else "length")


def test_penalties_count_what_the_reply_has_and_nothing_else(engine, parameters):
    """Each token is the best of the torch reference's logits less the penalties."""
    prompt = text_prompt(12, seed=3)
    penalised = dataclasses.replace(GREEDY, presence_penalty=2.0, frequency_penalty=1.5)
    (alone,) = answer(engine, [prompt], [GREEDY])
    for _ in range(2):  # the second time in slots that have been used
        completions = answer(
            engine,
            [prompt] * 3,
            [GREEDY, penalised, dataclasses.replace(penalised, presence_penalty=-1.0)],
        )
        assert completions[0].tokens == alone.tokens
        assert len({completion.tokens for completion in completions}) == 3
        oracle = torch_reference.qwen2(
            torch_reference.to_torch(parameters)["decoder"], CONFIG.decoder
        )
        for completion, presence in ((completions[1], 2.0), (completions[2], -1.0)):
            with torch.no_grad():
                logits = (
                    oracle(torch.tensor([[*prompt.tokens.tolist(), *completion.tokens]]))
                    .logits[0]
                    .numpy()
                )
            counts = np.zeros(logits.shape[1])
            for token, following in zip(
                completion.tokens, logits[prompt.length - 1 :], strict=False
            ):
                scores = following.astype(np.float64) - 1.5 * counts - presence * (counts > 0)
                assert scores[token] >= scores.max() - 1e-4
                counts[token] += 1


def test_a_reply_that_falls_into_a_loop_is_ended(engine):
    """A repetition penalty below 1 makes a loop; other requests beside it are left alone."""
    prompt = text_prompt(12, seed=9)
    looping = dataclasses.replace(GREEDY, repetition_penalty=0.2, max_new_tokens=64)
    detection = RepetitionDetectionConfig(max_pattern_size=8, min_count=4)
    ended, free, longer = answer(
        engine,
        [prompt] * 3,
        [
            dataclasses.replace(looping, repetition_detection=detection),
            looping,
            dataclasses.replace(
                looping,
                repetition_detection=RepetitionDetectionConfig(max_pattern_size=8, min_count=64),
            ),
        ],
    )
    end = next(
        end
        for end in range(len(free.tokens) + 1)
        if any(
            free.tokens[:end][-4 * size :] == free.tokens[:end][-size:] * 4
            for size in range(1, 9)
            if 4 * size <= end
        )
    )
    assert 4 <= end < 64
    assert (ended.tokens, ended.finish_reason, ended.stop_token) == (
        free.tokens[:end],
        "repetition",
        None,
    )
    assert (free.finish_reason, longer.tokens) == ("length", free.tokens)
    assert len(ended.logprobs) == len(ended.sampling_logprobs) == end


def test_a_request_can_be_cancelled_before_and_while_it_is_answered(parameters):
    engine = make_engine(parameters, slots=1, steps=4)
    prompts = [text_prompt(10 + index, seed=index) for index in range(3)]
    first, second, third = (engine.submit(prompt, [GREEDY])[0] for prompt in prompts)
    engine.step()
    engine.cancel(first)
    engine.cancel(second)
    engine.cancel(999)
    done = {output.request: output.completion for output in engine.run() if output.completion}
    assert {number: completion.finish_reason for number, completion in done.items()} == {
        first: "cancelled",
        second: "cancelled",
        third: "length",
    }
    assert [len(done[number].tokens) for number in (first, second, third)] == [5, 0, 48]
    assert done[third].tokens == answer(make_engine(parameters), [prompts[2]], [GREEDY])[0].tokens
    assert engine.free_slots == 1
    assert not engine.busy


def test_programs_are_bounded_by_the_buckets(parameters):
    engine = make_engine(parameters)
    prompts = [text_prompt(length, seed=length) for length in range(1, 33)]
    answer(engine, prompts, [dataclasses.replace(GREEDY, max_new_tokens=2)] * 32)
    assert engine.programs == ("decode 4 x 16", "insert 32", "prefill 32")


def test_requests_that_cannot_be_answered_are_refused_before_anything_is_computed(
    engine, parameters
):
    prompts = [text_prompt(length, seed=length) for length in (10, 380, 40)]
    with pytest.raises(
        GenerationError,
        match="prompt 1: the dialogue has 380 tokens and may get 21 new ones, 1 more",
    ):
        next(engine.generate(prompts, [dataclasses.replace(GREEDY, max_new_tokens=21)] * 3))
    with pytest.raises(
        GenerationError,
        match="40 tokens and may get 25 new ones, 1 more than a slot's 64 positions",
    ):
        make_engine(parameters, slot_tokens=64).submit(
            text_prompt(40, seed=1), [dataclasses.replace(GREEDY, max_new_tokens=25)]
        )
    with pytest.raises(GenerationError, match="the prompt is empty"):
        engine.submit(text_prompt(0, seed=1), [GREEDY])
    with pytest.raises(GenerationError, match="slots=0 and steps=16 must be positive"):
        make_engine(parameters, slots=0)
    with pytest.raises(
        GenerationError, match="slot_tokens=401 must lie between 1 and the model's 400 positions"
    ):
        make_engine(parameters, slot_tokens=401)
    assert list(engine.generate([], [])) == []
    assert not engine.busy


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"max_new_tokens": 0},
        {"max_reasoning_tokens": 0},
        {"stop_tokens": tuple(range(8))},
        {"stop_strings": ("",)},
        {"stop_in_reasoning": "no"},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"frequency_penalty": float("nan")},
        {"repetition_detection": 3},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting):
    with pytest.raises(GenerationError, match=next(iter(setting))):
        Sampling(**setting)
