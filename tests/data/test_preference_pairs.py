"""Preference records as examples: which reply is better, what is left out, what is shared."""

import contextlib
import json

import numpy as np
import pytest

from stepaudio_jax.config import DataConfig, Preference, SourceConfig
from stepaudio_jax.data import evaluation_batches, read_records
from stepaudio_jax.data.preference_pairs import (
    CHOSEN,
    REJECTED,
    UNRELATED,
    PairFormat,
    read_replies,
)
from stepaudio_jax.data.record import Visit
from stepaudio_jax.errors import DataError
from tests.training.preference_data import (
    MODEL,
    SIZES,
    TOKENIZER,
    preprocessor,
    records,
    write_records,
)

DPO, KTO = Preference(), Preference(loss="kto")


def read(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(read_records(path))


def pair(**keys):
    return {"prompt": "How?", "chosen": "well", "rejected": "badly", **keys}


def verdicts(*levels):
    return [{"annotator": str(number), "verdict": level} for number, level in enumerate(levels)]


def texts(labeled):
    return {reply: message.text for reply, message in labeled.replies.items()}


@pytest.mark.parametrize(
    ("keys", "label", "margin", "chosen"),
    [
        ({}, 1.0, 0.0, "well"),
        ({"margin": 2}, 1.0, 2.0, "well"),
        ({"margin": 0}, 0.5, 0.0, "well"),
        ({"annotations": verdicts(3, 1, None)}, 1.0, 2.0, "well"),
        ({"annotations": verdicts(2, 0, -2, -2)}, 1 - 0.375, 0.5, "badly"),
        ({"annotations": verdicts(3, 0, -1, -1)}, 1 - 0.375, 0.0, "badly"),
        ({"annotations": verdicts(0, 0)}, 0.5, 0.0, "well"),
        ({"annotations": verdicts(-2)}, 1.0, 2.0, "badly"),
    ],
)
def test_who_is_better_and_by_how_much(tmp_path, keys, label, margin, chosen):
    (record,) = read(tmp_path, pair(**keys))
    labeled = read_replies(record, DPO)
    assert (labeled.label, labeled.margin) == (label, margin)
    assert texts(labeled)[CHOSEN] == chosen
    assert len(labeled.replies) == 2
    if label < 1:
        skips = Preference(equal_pairs="skip")
        if label == 0.5:
            for objective in (skips, KTO, Preference(loss="orpo")):
                with pytest.raises(DataError) as error:
                    read_replies(record, objective)
                assert error.value.kind == "equal_pair"
        else:
            assert read_replies(record, KTO).label == 1  # the majority's


def test_a_record_that_nobody_judged_has_no_label(tmp_path):
    (record,) = read(tmp_path, pair(annotations=verdicts(None, None)))
    with pytest.raises(DataError) as error:
        read_replies(record, DPO)
    assert error.value.kind == "no_verdict"


def test_dialogues_with_a_label_are_single_replies_for_kto(tmp_path):
    turns = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "well"}]
    good, bad = read(
        tmp_path, {"messages": turns, "label": True}, {"messages": turns, "label": False}
    )
    assert texts(read_replies(good, KTO)) == {CHOSEN: "well"}
    assert texts(read_replies(bad, KTO)) == {REJECTED: "well"}
    assert all(message.in_loss for message in read_replies(bad, KTO).replies.values())
    for objective, advice in ((DPO, "give them"), (KTO, "a 'label' of its last reply")):
        (record,) = read(tmp_path, {"messages": turns})
        with pytest.raises(DataError, match=advice):
            read_replies(record, objective)


def test_reasoning_is_kept_and_may_be_left_out_of_the_loss(tmp_path):
    write_records(tmp_path)
    visit = Visit(0, 0, 0)
    sizes = {}
    for in_loss in (True, False):
        prepare = preprocessor(
            tmp_path / "pairs.jsonl", PairFormat(DPO, shares_prompt=True), loss_on_reasoning=in_loss
        )
        (example,) = prepare(visit).examples
        counted = example.loss_weights > 0
        replies = [
            TOKENIZER.decode(example.targets[counted & (example.pair.reply_ids == reply)].tolist())
            for reply in (CHOSEN, REJECTED)
        ]
        sizes[in_loss] = example.tokens.size
        if in_loss:
            assert replies == ["300 Hz\n</think>\nlow<|EOT|>", "\n</think>\na high one<|EOT|>"]
        else:
            assert replies == ["low<|EOT|>", "a high one<|EOT|>"]
    assert sizes[True] == sizes[False]


def test_the_prompt_stands_once_and_each_reply_continues_it(tmp_path):
    prepare = preprocessor(write_records(tmp_path), PairFormat(DPO, shares_prompt=True))
    unshared = preprocessor(tmp_path / "pairs.jsonl", PairFormat(DPO, shares_prompt=False))
    for number in range(len(records())):
        (example,) = prepare(Visit(0, number, 0)).examples
        (apart,) = unshared(Visit(0, number, 0)).examples
        prompt = int((example.segment_ids == 0).sum())
        assert example.segment_ids.max() == 2
        assert prompt > 10
        assert set(example.pair.prefix_ids[:prompt]) == {-1}
        assert set(example.pair.prefix_ids[prompt:]) == {0}
        assert apart.tokens.size == example.tokens.size + prompt
        for segment in (1, 2):
            here = example.segment_ids == segment
            assert example.positions[here][0] == prompt
            there = apart.segment_ids == segment - 1
            joined = np.concatenate([example.tokens[:prompt], example.tokens[here]])
            np.testing.assert_array_equal(joined, apart.tokens[there])
        assert len(example.chunks) == len(apart.chunks)


def test_kto_gets_a_reply_to_another_prompt(tmp_path):
    prepare = preprocessor(write_records(tmp_path), PairFormat(KTO, shares_prompt=True))
    (example,) = prepare(Visit(0, 5, 0)).examples
    here = example.pair.reply_ids == UNRELATED
    text = TOKENIZER.decode(example.targets[here].tolist())
    assert text == "300 Hz\n</think>\nlow<|EOT|>"  # that of the first record
    prepare = preprocessor(
        tmp_path / "pairs.jsonl",
        PairFormat(KTO, shares_prompt=True),
        seq_len=example.tokens.size - 1,
    )
    (shorter,) = prepare(Visit(0, 5, 0)).examples
    assert not (shorter.pair.reply_ids == UNRELATED).any()


def test_a_pair_that_does_not_fit_is_an_error_with_advice(tmp_path):
    path = write_records(tmp_path)
    prepare = preprocessor(path, PairFormat(DPO, shares_prompt=False), seq_len=100)
    with pytest.raises(DataError, match=rf"{path}:2: the replies with a prompt for each take") as e:
        prepare(Visit(0, 1, 0))
    assert e.value.kind == "too_long"
    skipping = preprocessor(
        path, PairFormat(DPO, shares_prompt=False), seq_len=100, on_too_long="skip"
    )
    assert skipping(Visit(0, 1, 0)).skipped == "too_long"


def test_batches_count_what_is_left_out(tmp_path):
    rows = [*records(), pair(annotations=verdicts(None))]
    path = write_records(tmp_path, rows)
    config = DataConfig(sources=(SourceConfig(path=str(path)),), batch_size=2, **SIZES)
    pair_format = PairFormat(Preference(equal_pairs="skip"), shares_prompt=True)
    iterator = evaluation_batches(config, TOKENIZER, MODEL, pair_format=pair_format)
    with contextlib.closing(iterator) as data:
        batches = list(data)
        counts = data.counts
    seen = sorted(
        record
        for batch in batches
        for row in batch.pairs.records
        for source, record in row.tolist()
        if source >= 0
    )
    assert seen == [0, 1, 2, 4, 5]
    assert counts == {
        "records": 5,
        "records/pairs": 5,
        "skipped_equal_pair": 1,
        "skipped_no_verdict": 1,
    }
