"""From verdicts to records: what judges and stages of RL read, and what forgetting leaves."""

import json

import pytest

from launch.data import main as launch_data
from launch.judge import main as launch_judge
from stepaudio_jax.data import read_records
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.errors import ConfigError, OutputError
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.judge.training import judge_dialogues
from stepaudio_jax.serving.preferences import forgetting
from stepaudio_jax.serving.preferences.forgetting import forget_annotator
from stepaudio_jax.serving.preferences.records import write_records
from stepaudio_jax.serving.preferences.store import PreferenceStore
from tests.serving.preferences.studies import RUBRIC, compare, prefer, sound
from tests.serving.preferences.test_store import pairs_file, with_settings


def both(first, second, assignment):
    """Marks of two criteria, met by a and b as given, in the order in which they are shown."""
    marks = {"a": first, "b": second}
    other = "b" if assignment.shown_first == "a" else "a"
    return [
        {"first": marks[assignment.shown_first][n], "second": marks[other][n]} for n in range(2)
    ]


def test_what_people_prefer_on_average_is_chosen(tmp_path):
    folder = with_settings(tmp_path / "s", overlap=3)
    store = PreferenceStore(folder, pairs_file(tmp_path / "p.jsonl", 3, rubric=RUBRIC, answer="7"))
    levels = {"p0": ("b", "b", "a"), "p1": ("a", "b", None), "p2": (None, None, None)}
    for number, name in enumerate(("ann", "bo", "cy")):
        while (assignment := store.next_pair(name)) is not None:
            side = levels[assignment.pair][number]
            marks = both((False, True), (True, True), assignment)
            if side is None:
                prefer(store, assignment, "a", 0, verdict=None)
            else:
                prefer(store, assignment, side, 3, criteria=marks)
    store.close()
    written = write_records(folder)
    assert (written.replies, written.verdicts, written.skipped) == (2, 5, 1)
    first, second = read_records(folder / "records.jsonl")
    assert (first.id, first.reference_reply, first.rejected_reply) == ("p0", "bad 0", "good 0")
    assert first.margin == 1  # the mean of 3, 3 and -3
    assert [item.verdict for item in first.annotations] == [3, 3, -3]
    assert (first.reference_meets, first.rejected_meets) == ((True, True), (False, True))
    assert (second.reference_reply, second.margin, second.answer) == ("good 1", 0, "7")
    assert [item.verdict for item in second.annotations] == [3, -3, None]
    for record in (first, second):
        assert len(list(judge_dialogues(record, JudgePrompt()))) == 2


def test_a_small_preference_is_never_called_equal(tmp_path):
    folder = with_settings(tmp_path / "s", overlap=5)
    store = PreferenceStore(folder, pairs_file(tmp_path / "p.jsonl", 1))
    for number in range(5):
        prefer(store, store.next_pair(f"ann{number}"), "a", 1 if number == 0 else 0)
    store.close()
    write_records(folder)
    (record,) = read_records(folder / "records.jsonl")
    assert record.margin == 1


def test_gold_pairs_keep_the_known_answer(tmp_path):
    folder = with_settings(tmp_path / "s", gold="g.jsonl", gold_every=1)
    pairs_file(folder / "g.jsonl", 1)
    store = PreferenceStore(folder)
    prefer(store, store.next_pair("ann"), "b", 2)
    store.close()
    write_records(folder)
    (record,) = read_records(folder / "records.jsonl")
    assert record.reference_reply == "good 0"
    assert record.annotations[0].is_gold
    assert record.annotations[0].verdict == -2


def test_a_gold_pair_has_the_criteria_of_the_study(tmp_path):
    folder = with_settings(tmp_path / "s", gold="g.jsonl", gold_every=1, rubric=RUBRIC)
    pairs_file(folder / "g.jsonl", 1)
    store = PreferenceStore(folder)
    assignment = store.next_pair("ann")
    prefer(store, assignment, "a", criteria=both((True, False), (False, False), assignment))
    store.close()
    write_records(folder)
    (record,) = read_records(folder / "records.jsonl")
    assert [criterion.text for criterion in record.rubric] == ["greets", "lectures"]
    assert [met.a for met in record.annotations[0].criteria] == [True, False]


def test_a_record_has_the_criteria_of_its_last_verdict(tmp_path):
    folder = with_settings(tmp_path / "s", overlap=2, rubric=RUBRIC)
    pairs = pairs_file(tmp_path / "p.jsonl", 1)
    for name, rubric in (("ann", RUBRIC), ("bo", RUBRIC[:1])):
        with_settings(folder, overlap=2, rubric=rubric)
        store = PreferenceStore(folder, pairs)
        assignment = store.next_pair(name)
        marks = both((True, True), (False, False), assignment)[: len(rubric)]
        prefer(store, assignment, "a", criteria=marks)
        store.close()
    write_records(folder)
    (record,) = read_records(folder / "records.jsonl")
    assert [criterion.text for criterion in record.rubric] == ["greets"]
    assert [item.verdict for item in record.annotations] == [2, 2]
    assert [len(item.criteria) for item in record.annotations] == [0, 1]
    assert record.reference_meets == (True,)


def test_spoken_turns_reasoning_and_odd_words_survive(tmp_path):
    store = PreferenceStore(tmp_path / "s")
    odd = '<think>not a thought</think> "quoted" \u2028 你好 \x00'
    content = [sound(0.5, transcript="a tone"), {"type": "text", "text": "Well?"}]
    assignment = compare(store, a=odd, content=content)
    prefer(store, assignment, "a", better_reply="Better.")
    store.close()
    write_records(store.folder)
    write_records(store.folder, tmp_path / "elsewhere.jsonl")
    row = json.loads((store.folder / "records.jsonl").read_text())
    assert row["chosen"][0]["content"] == f"<think>Hm.</think>{odd}"
    assert row["rejected"][0]["reasoning_content"] == "Hm."
    for path in (store.folder / "records.jsonl", tmp_path / "elsewhere.jsonl"):
        (record,) = read_records(path)
        assert record.reference_reply == odd
        assert record.annotations[0].better_reply == "Better."
        (clip,) = record.messages[0].audio
        assert clip.transcript == "a tone"
        assert len(load_clip(clip)) == 8000


def test_records_feed_a_judge_from_the_command_line(tmp_path, capsys):
    store = PreferenceStore(tmp_path / "s")
    for _ in range(3):
        assignment = compare(store, rubric=RUBRIC)
        marks = both((True, False), (False, False), assignment)
        prefer(store, assignment, "a", criteria=marks)
    prefer(store, compare(store, a=["One.", "Two."], b=["One!", "Three."]), "b")
    assert launch_data(["preferences", str(store.folder)]) == 0  # the server is still running
    store.close()
    assert "3 records of two replies" in capsys.readouterr().out
    records = str(store.folder / "records.jsonl")
    launch_judge(["data", "--input", records, "--output", str(tmp_path / "judge.jsonl")])
    assert len(list(read_records(tmp_path / "judge.jsonl"))) == 6
    dialogues = json.loads((store.folder / "dialogues.jsonl").read_text())
    assert [turn["role"] for turn in dialogues["chosen"]] == ["assistant", "user", "assistant"]
    assert dialogues["chosen"][-1]["content"] == "Three."


def test_a_file_of_the_user_is_not_replaced(tmp_path):
    store = PreferenceStore(tmp_path / "s")
    prefer(store, compare(store), "a")
    store.close()
    mine = pairs_file(tmp_path / "mine.jsonl", 1)
    with pytest.raises(OutputError, match="exists already"):
        write_records(store.folder, mine)
    with pytest.raises(ConfigError, match=r"has no settings\.json"):
        write_records(tmp_path)


def study_with_imports(tmp_path):
    """A study whose pair brought an annotation of "a/b", and that bo has judged."""
    folder = tmp_path / "s"
    annotations = [{"annotator": name, "verdict": 1} for name in ("a/b", "cy")]
    store = PreferenceStore(folder, pairs_file(tmp_path / "p.jsonl", 1, annotations=annotations))
    prefer(store, store.next_pair("bo"), "a")
    store.close()
    write_records(folder)
    return folder


def test_whoever_is_only_in_imported_annotations_is_forgotten(tmp_path):
    folder = study_with_imports(tmp_path)
    assert forget_annotator(folder, "a/b").annotations == 1
    for name in ("pairs.jsonl", "records.jsonl"):
        text = (folder / name).read_text()
        assert "a/b" not in text
        assert "cy" in text
    with pytest.raises(ConfigError, match="nothing of that name"):
        forget_annotator(folder, "a/b")


@pytest.mark.parametrize("name", ["a/b", "ann"])
@pytest.mark.parametrize("step", ["write_records", "_remove_unused_clips", "sync_path"])
def test_forgetting_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, name, step):
    folder = study_with_imports(tmp_path)
    store = PreferenceStore(folder)
    prefer(store, compare(store, "ann", content=[sound(0.2)]), "a")
    store.close()
    write_records(folder)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, step, fail)
        with pytest.raises(KeyboardInterrupt):
            forget_annotator(folder, name)
    left = [path for path in folder.rglob("*.jsonl") if f'"{name}"' in path.read_text()]
    if left:
        forget_annotator(folder, name)
    assert not [path for path in folder.rglob("*.jsonl") if f'"{name}"' in path.read_text()]
    assert len([*(folder / "clips").rglob("*.wav")]) == (name != "ann")


def test_a_wrong_name_removes_nothing(tmp_path):
    folder = study_with_imports(tmp_path)
    clip = folder / "clips" / "000" / "orphan.wav"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"voice")
    with pytest.raises(ConfigError, match="nothing of that name"):
        forget_annotator(folder, "nobody")
    assert clip.exists()
    assert forget_annotator(folder, "bo").clips == 1


def test_forgetting_leaves_nothing_of_a_person(tmp_path, capsys):
    folder = with_settings(tmp_path / "s", consent="We keep your voice.")
    store = PreferenceStore(folder, pairs_file(tmp_path / "p.jsonl", 4))
    shared, own = sound(0.3), sound(0.4)
    for name in ("ann", "bo"):
        store.agree(name, store.consent_hash)
        prefer(store, compare(store, name, content=[shared]), "a", critique=f"by {name}")
        prefer(store, store.next_pair(name), "b")
    prefer(store, compare(store, "ann", content=[own]), "b")
    with pytest.raises(ConfigError, match="in use by a server; stop it"):
        forget_annotator(folder, "ann")
    store.close()
    write_records(folder)
    half = next((folder / "clips").rglob("*.wav")).with_name(".half-written.tmp")
    half.write_bytes(b"voice")
    assert len(list((folder / "clips").rglob("*.wav"))) == 2
    assert launch_data(["forget", str(folder), "--annotator", "ann"]) == 0
    assert "3 verdicts, 3 comparisons, 1 consents, 2 recordings" in capsys.readouterr().out
    for path in folder.rglob("*"):
        assert path.is_dir() or b"ann" not in path.read_bytes().replace(b"annotat", b"")
    assert len(list((folder / "clips").rglob("*.wav"))) == 1
    assert not half.exists()
    assert len(list(read_records(folder / "records.jsonl"))) == 2
    with pytest.raises(ConfigError, match="nothing of that name"):
        forget_annotator(folder, "ann")
    again = PreferenceStore(folder)
    assert len(again.study.verdicts) == 2
    again.close()
