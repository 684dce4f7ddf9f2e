"""A study on the disk: what is acknowledged is kept, once, whoever is killed and when."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.errors import ConfigError, ConflictError, ConsentError, DataError, OutputError
from stepaudio_jax.serving.preferences import store as store_module
from stepaudio_jax.serving.preferences.journals import read_study
from stepaudio_jax.serving.preferences.store import PreferenceStore
from stepaudio_jax.serving.preferences.study import parse_settings
from tests.serving.preferences.studies import RUBRIC, compare, prefer, sound, verdict, wav


@pytest.fixture
def store(tmp_path):
    opened = PreferenceStore(tmp_path / "study")
    yield opened
    opened.close()


def with_settings(folder, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def pairs_file(path, count, **keys):
    rows = [
        {
            "id": f"p{number}",
            "messages": [{"role": "user", "content": f"{number}?"}],
            "chosen": f"good {number}",
            "rejected": f"bad {number}",
            **keys,
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_verdict_is_read_back_with_the_sides_that_were_drawn(store):
    assignment = compare(store, rubric=RUBRIC)
    first = {"first": True, "second": False}
    kept = store.judge(
        verdict(
            assignment,
            3,
            criteria=[first, first],
            reasons=["tone", "wrong"],
            critique=" abrupt ",
            better_reply="Hello there!",
        )
    )
    (read,) = read_study(store.folder).verdicts.values()
    assert read == kept
    sign = 1 if assignment.shown_first == "a" else -1
    assert read.annotation.verdict == 3 * sign
    assert read.annotation.shown_first == assignment.shown_first
    assert [met.a for met in read.annotation.criteria] == [sign > 0] * 2
    assert read.annotation.reasons == ("wrong", "tone")
    assert read.annotation.critique == "abrupt"


def test_sides_are_drawn_at_random_and_kept(store):
    drawn = [compare(store).shown_first for _ in range(64)]
    assert {*drawn} == {"a", "b"}  # one of 2**63 studies would fail
    assert [item.shown_first for item in read_study(store.folder).assignments.values()] == drawn


def test_a_verdict_that_is_sent_again_is_kept_once(store):
    assignment = compare(store)
    sent = verdict(assignment, 1)
    assert store.judge(sent) == store.judge(sent)
    assert len((store.folder / "verdicts.jsonl").read_text().splitlines()) == 1
    with pytest.raises(ConflictError, match="another verdict"):
        store.judge({**sent, "verdict": -1})
    with pytest.raises(ConflictError, match="another tab"):
        store.judge({**sent, "id": "another-id"})


def test_sound_is_heard_before_a_verdict_and_not_before_a_skip(store):
    assignment = compare(store, content=[sound(2.0), {"type": "text", "text": "Well?"}])
    assert assignment.seconds == pytest.approx(2.0)
    with pytest.raises(DataError, match=r"listen to the 2\.0 s"):
        store.judge(verdict(assignment, 1, seconds_listened=0.4))
    with pytest.raises(DataError, match="'seconds_listened' must be a number"):
        store.judge(verdict(assignment, 1, seconds_listened=float("nan")))
    store.judge(verdict(assignment, None, seconds_listened=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": 4}, "'verdict' must be a whole number from -3 to 3"),
        ({"verdict": True}, "'verdict' must be"),
        ({"annotator": "bo"}, "not the one whom this was shown to"),
        ({"annotator": "<b>"}, "'annotator' must be a name"),
        ({"assignment": "../../etc/passwd"}, "'assignment' must be 8 to 64"),
        ({"assignment": "0" * 32}, "not of this study"),
        ({"id": ""}, "'id' must be 8 to 64"),
        ({"reasons": ["ugly"]}, "'reasons' must be some of did_not_hear"),
        ({"criteria": []}, "'criteria' must say of each criterion"),
        ({"criteria": [{"first": True, "second": False}]}, "'criteria' has 1 entries"),
        ({"critique": "x" * 30_000}, "'critique' must be a text of at most"),
        ({"better_reply": "\ud800"}, "half a character"),
    ],
)
def test_bad_verdicts_are_refused_and_nothing_is_written(store, change, message):
    assignment = compare(store, rubric=RUBRIC)
    both = [{"first": True, "second": True}] * 2
    with pytest.raises(DataError, match=message):
        store.judge({**verdict(assignment, 1, criteria=both), **change})
    assert (store.folder / "verdicts.jsonl").read_bytes() == b""
    store.judge(verdict(assignment, 1, criteria=both))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": ""}, "empty"),
        ({"content": [{"type": "audio", "audio": "/etc/passwd"}]}, "'text' or 'input_audio'"),
        ({"content": [{"type": "input_audio", "input_audio": {"data": "%%"}}]}, "not base64"),
        (
            {"content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}]},
            "audio",
        ),
        ({"rubric": ["x"] * 21}, "give at most 20"),
        ({"content": [sound(61.0)]}, "more than 60"),
        ({"source": 3}, "'source' must be a name"),
        ({"content": [sound(0.1)] * 5}, "more than 4 clips"),
        ({"content": [sound(0.1), {"type": "video"}]}, "'text' or 'input_audio'"),
    ],
)
def test_bad_comparisons_are_refused(store, change, message):
    with pytest.raises(ValueError, match=message):
        compare(store, **change)
    assert read_study(store.folder).assignments == {}
    assert not [path for path in (store.folder / "clips").rglob("*") if path.is_file()]


def test_the_same_reply_twice_can_only_be_equal(store):
    assignment = compare(store, a="Hi.", b=" Hi. ")
    with pytest.raises(DataError, match="both replies are the same"):
        store.judge(verdict(assignment, 1))
    store.judge(verdict(assignment, 0))


def test_nothing_is_kept_before_somebody_agrees(tmp_path):
    store = PreferenceStore(with_settings(tmp_path / "s", consent="We keep your voice."))
    with pytest.raises(ConsentError, match="ann has not agreed"):
        compare(store)
    with pytest.raises(DataError, match="load the page again"):
        store.agree("ann", "0")
    store.agree("ann", store.consent_hash)
    store.agree(" ann ", store.consent_hash)
    store.judge(verdict(compare(store)))
    store.close()
    again = PreferenceStore(tmp_path / "s")
    compare(again)
    with pytest.raises(ConsentError):
        again.next_pair("bo")
    again.close()


def test_prepared_pairs_are_divided_with_overlap_and_resumed(tmp_path):
    folder = with_settings(tmp_path / "s", overlap=2)
    pairs = pairs_file(tmp_path / "pairs.jsonl", 6)
    judged: dict[str, set[str]] = {}
    for start in range(8):  # the server is started again before each round
        store = PreferenceStore(folder, pairs if start == 0 else None)
        for name in ("ann", "bo", "cy"):
            assignment = store.next_pair(name)
            if assignment is None:
                continue
            assert store.next_pair(name) is assignment  # a reload, or a second tab
            assert name not in judged.setdefault(assignment.pair, set())
            judged[assignment.pair].add(name)
            store.judge(verdict(assignment, 1))
        store.close()
    assert sorted(judged) == [f"p{number}" for number in range(6)]
    assert [len(names) for names in judged.values()] == [2] * 6


def test_a_pair_that_somebody_skipped_is_shown_to_others(tmp_path):
    store = PreferenceStore(tmp_path / "s", pairs_file(tmp_path / "p.jsonl", 1))
    store.judge(verdict(store.next_pair("ann"), None))
    assert store.next_pair("ann") is None
    assert store.next_pair("bo").pair == "p0"
    assert store.next_pair("cy") is None  # it is before bo, and may still be judged
    store.close()


def test_only_a_pair_that_was_shown_an_hour_ago_goes_to_somebody_else(tmp_path):
    folder = tmp_path / "s"
    store = PreferenceStore(folder, pairs_file(tmp_path / "p.jsonl", 2))
    forgotten = store.next_pair("ann")
    store.close()
    path = folder / "assignments.jsonl"
    row = {**json.loads(path.read_text()), "time": "2020-01-01T00:00:00+00:00"}
    path.write_text(json.dumps(row) + "\n")
    store = PreferenceStore(folder)
    assert store.next_pair("bo").pair != forgotten.pair
    assert store.next_pair("cy").pair == forgotten.pair
    assert store.next_pair("dee") is None  # bo and cy were shown theirs just now
    store.close()


def test_a_verdict_keeps_the_criteria_that_it_was_asked_for(tmp_path):
    folder = with_settings(tmp_path / "s", rubric=RUBRIC)
    store = PreferenceStore(folder, pairs_file(tmp_path / "p.jsonl", 2))
    both = [{"first": True, "second": False}] * 2
    first = store.judge(verdict(store.next_pair("ann"), 1, criteria=both))
    shown = store.next_pair("ann")
    store.close()
    with_settings(folder, rubric=["other"])
    store = PreferenceStore(folder)
    assert store.study.verdicts[first.id] == first
    kept = store.judge(verdict(store.next_pair("ann"), 1, criteria=both))
    assert kept.assignment == shown.id
    store.close()
    # A folder of before assignments kept their rubric:
    path = folder / "assignments.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "rubric": None}) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"has 2 criteria .* has 1; .* put back the rubric"):
        PreferenceStore(folder)
    with_settings(folder, rubric=RUBRIC)
    PreferenceStore(folder).close()


def test_a_comparison_without_a_rubric_has_that_of_the_study(tmp_path):
    store = PreferenceStore(with_settings(tmp_path / "s", rubric=RUBRIC))
    asked = [store.study.comparison(compare(store, **keys)).rubric for keys in ({}, {"rubric": []})]
    assert [len(rubric) for rubric in asked] == [2, 0]
    store.close()


def test_others_do_not_wait_while_sound_is_decoded(store, tmp_path, monkeypatch):
    clip = tmp_path / "clip.wav"
    clip.write_bytes(wav())
    content = [{"type": "audio", "audio": str(clip)}]
    pairs = pairs_file(tmp_path / "p.jsonl", 1, messages=[{"role": "user", "content": content}])
    paired = PreferenceStore(tmp_path / "paired", pairs)

    def begin(kept):
        assignment = compare(kept, "bo")

        def load(clip):
            judge = threading.Thread(target=kept.judge, args=(verdict(assignment),))
            judge.start()
            judge.join(60)
            assert not judge.is_alive()
            return load_clip(clip)

        monkeypatch.setattr(store_module, "load_clip", load)

    begin(store)
    assert compare(store, content=[sound()]).seconds == pytest.approx(0.5)
    monkeypatch.undo()
    begin(paired)
    assert paired.next_pair("ann").seconds == pytest.approx(0.5)
    paired.close()


def test_a_clip_that_others_name_outlives_a_comparison_that_fails(store):
    def fail():
        with store.adding_clips() as add:
            add(wav(), "clip.wav")
            raise KeyError

    with store.adding_clips() as add:
        path = add(wav(), "clip.wav")
        with pytest.raises(KeyError):
            fail()
        assert (store.folder / path).exists()
    with pytest.raises(KeyError):
        fail()
    assert not (store.folder / path).exists()


def test_sound_is_read_in_the_forms_that_chats_have(store):
    data = base64.b64encode(wav(0.5)).decode()
    for form in (data.rstrip("="), f"{data[:40]}\n{data[40:]}", f"data:audio/wav;base64,{data}"):
        part = {"type": "input_audio", "input_audio": {"data": form, "format": "wav"}}
        assert compare(store, content=[part]).seconds == pytest.approx(0.5)


def test_gold_pairs_come_at_their_turn(tmp_path):
    folder = with_settings(tmp_path / "s", gold="known.jsonl", gold_every=3)
    rows = pairs_file(folder / "known.jsonl", 2).read_text().replace('"p', '"g')
    (folder / "known.jsonl").write_text(rows)
    store = PreferenceStore(folder, pairs_file(tmp_path / "p.jsonl", 9))
    shown = []
    for _ in range(8):
        assignment = store.next_pair("ann")
        shown.append(assignment.pair)
        kept = prefer(store, assignment, "a")
        assert kept.annotation.is_gold == assignment.pair.startswith("g")
    assert shown == ["p0", "p1", "g0", "p2", "p3", "g1", "p4", "p5"]
    store.close()


def test_pairs_of_another_file_and_bad_ones_are_refused(tmp_path):
    folder = tmp_path / "s"
    PreferenceStore(folder, pairs_file(tmp_path / "p.jsonl", 2)).close()
    with pytest.raises(ConfigError, match="has other pairs"):
        PreferenceStore(folder, pairs_file(tmp_path / "p.jsonl", 3))
    PreferenceStore(folder, pairs_file(tmp_path / "p.jsonl", 2)).close()  # and is not left locked
    with pytest.raises(ConfigError, match=r"p\.jsonl:2 has the id 'same' of an earlier"):
        PreferenceStore(tmp_path / "t", pairs_file(tmp_path / "p.jsonl", 2, id="same"))


def test_a_study_is_open_once(store):
    with pytest.raises(ConfigError, match="in use by another server"):
        PreferenceStore(store.folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": 5}, "unknown key \"level\"; did you mean 'levels'"),
        ({"levels": 4}, "'levels' must be one of 3, 5, 7, got 4"),
        ({"overlap": 0}, "'overlap' must be a whole number, 1 or more"),
        ({"listening": 2}, "'listening' must be a share"),
        ({"consent": " "}, "'consent' must be a text, or null"),
        ({"reasons": ["a", "a"]}, "'reasons' must be a list of short texts"),
        ({"rubric": [{"criterion": "x", "wait": 1}]}, "criterion 1 has the unknown key .wait."),
        ([], "must be a JSON object"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings(settings, "settings.json")


def test_a_torn_last_line_is_not_read_and_a_damaged_one_is_said(store, tmp_path):
    store.judge(verdict(compare(store)))
    lost = compare(store)
    store.close()
    path = store.folder / "verdicts.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    again = PreferenceStore(store.folder)
    assert len(again.study.verdicts) == 1
    again.judge(verdict(lost, -1))
    again.close()
    assert len(read_study(store.folder).verdicts) == 2
    path.write_bytes(b"{\n" + path.read_bytes())
    with pytest.raises(DataError, match=r"verdicts\.jsonl:1: the line is damaged"):
        PreferenceStore(store.folder)


def test_a_full_disk_is_said_and_nothing_follows_half_a_line(store, monkeypatch):
    sent = verdict(compare(store))

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        store.judge(sent)
    monkeypatch.undo()
    with pytest.raises(OutputError, match="start the server again"):
        store.judge(sent)
    store.close()
    again = PreferenceStore(store.folder)
    again.judge(sent)  # the client sends it again: kept once, whether or not the line got there
    again.close()
    assert len((store.folder / "verdicts.jsonl").read_bytes().splitlines()) == 1


def test_threads_do_not_mix_lines(store):
    assignments = [compare(store, annotator=f"ann{number % 4}") for number in range(24)]

    def work(mine):
        for assignment in mine:
            store.judge(verdict(assignment, 1))
            store.judge(verdict(assignment, 1))

    threads = [threading.Thread(target=work, args=(assignments[k::4],)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (store.folder / "verdicts.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == 24


_WRITER = """
import sys
from stepaudio_jax.serving.preferences.store import PreferenceStore
from tests.serving.preferences.studies import compare, verdict
store = PreferenceStore(sys.argv[1])
while True:
    assignment = compare(store)
    store.judge(verdict(assignment, 1))
    print(assignment.id, flush=True)
"""


@pytest.mark.slow
def test_no_acknowledged_verdict_is_lost_to_kill_9(tmp_path):
    acknowledged = []
    for number in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path / "s")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(5 + 3 * number):
            acknowledged.append(process.stdout.readline().strip())
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        acknowledged += [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        acknowledged = [line.strip() for line in acknowledged]
    study = read_study(tmp_path / "s")
    kept = [item.assignment for item in study.verdicts.values()]
    assert {*acknowledged} <= {*kept}
    assert len({*kept}) == len(kept)
