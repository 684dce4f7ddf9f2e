"""The page of a report: complete, self-contained, escaped, well-formed."""

import base64
import io
import json
import re
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
import soundfile

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.config import ModelConfig
from stepaudio_jax.errors import AudioError, DataError
from stepaudio_jax.evaluation import Results, score
from stepaudio_jax.hub import write_checkpoint_config
from stepaudio_jax.reports import select_examples, write_report
from stepaudio_jax.reports.charts import COLOURS
from tests.evaluation.answers import answer, answers
from tests.reports.page_parser import Page
from tests.reports.run_folder import write_run

HOSTILE = """</title><script>alert(1)</script>"'&amp;<img src=x onerror=alert(1)>\x00\x1b"""
LINES = [
    (
        "mid",
        50,
        {"loss": 2.0, "loss/next_token": 1.5, "loss/ctc": 4.0, "records": 70.0, "records/a": 70.0},
    ),
    (
        "mid",
        100,
        {
            "loss": 1.0,
            "loss/next_token": 0.75,
            "loss/ctc": 2.0,
            "records": 140.0,
            "records/a": 140.0,
        },
    ),
    ("mid", 100, {"evaluation/loss": 0.625}),
    (
        "sft",
        10,
        {
            "loss/next_token": 0.5,
            "tokens_per_second": 1234.0,
            "data_wait_fraction": 0.25,
            "skipped_bad_audio": 3.0,
        },
    ),
]


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return write_run(folder, LINES, stages=("mid", "sft"))


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, 0.5 * np.sin(np.arange(8000) / 5).astype(np.float32), SAMPLE_RATE)
    return path


def test_a_run_alone_is_a_report(run_dir, tmp_path):
    page = Page(write_report(tmp_path / "out" / "report.html", run_dir, "A run"))
    text = " ".join(page.text)
    assert [attributes["href"] for attributes in page.named("a")] == ["#curves", "#configuration"]
    for said in (
        "A run",
        "training: 0.5 at step 110, from 1.5 at step 50.",
        "held out: 0.625 at step 100",
        "100 of 100",
        "10 of 100",
        "140",
        "3 (bad audio)",
    ):
        assert said in text
    assert "25 % of the time" in text
    assert "not recorded" not in text
    headings = [part for part in page.text if part in ("Learning", "Speed", "Data", "Health")]
    assert headings == ["Learning", "Speed", "Data"]
    assert "Flat: Waiting for data 0.25" in text
    assert "random weights" in text
    assert "known when the run is finished" in text
    assert (
        json.loads(next(part for part in page.text if part.startswith('{\n  "run_dir"')))["seed"]
        == 0
    )


def test_benchmarks_in_training_are_shown(tmp_path):
    figures = [
        ("sft", step, {"evaluation/mmau_mini": share, "evaluation_failed/mmau_mini": 0.0})
        for step, share in ((10, 0.25), (20, 0.512))
    ]
    page = Page(write_report(tmp_path / "report.html", write_run(tmp_path, figures), "A run"))
    text = " ".join(page.text)
    assert "Benchmarks" in text
    assert "mmau mini: 0.512 at step 20, from 0.25 at step 10." in text
    assert "mmau_mini 51.2 %" in text


def test_results_and_examples_are_shown(run_dir, tmp_path, clip):
    given = [answer("low", "low", clip=clip), answer("low", "high", clip=clip, number=1)]
    results = Results(after=score(given), before=score(given), silenced=score(given))
    page = Page(write_report(tmp_path / "report.html", run_dir, "A run", results, given))
    text = " ".join(page.text)
    for said in (
        "silenced",
        "9.5 to 90.5 %",
        "✓ right",
        "✗ wrong",
        "I hear it.",
        "2 questions, 1 of these answered rightly",
    ):
        assert said in text
    players = page.named("audio")
    assert len(players) == 2
    assert [player["aria-label"] for player in players] == [
        "Clip 1 of example 1",
        "Clip 1 of example 2",
    ]
    for player in players:
        assert "controls" in player
        prefix, _, encoded = player["src"].partition(",")
        assert prefix == "data:audio/wav;base64"
        heard, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded)), dtype="float32")
        assert rate == SAMPLE_RATE
        np.testing.assert_allclose(heard, soundfile.read(clip, dtype="float32")[0], atol=1 / 32768)


def test_replies_of_a_policy_are_shown_escaped(run_dir, tmp_path):
    sample = {
        "stage": "rlhf",
        "id": "a",
        "source": "talk",
        "reasoning": HOSTILE,
        "reply": HOSTILE,
        "reference_reply": None,
    }
    samples = [
        sample | {"step": step, "answer": "7", "reward": None if step == 1 else 0.5, "parts": {}}
        for step in range(1, 30)
    ]
    samples[-1]["parts"] = {"preference": 0.25}
    lines = "".join(json.dumps(one) + "\n" for one in samples)
    (run_dir / "samples.jsonl").write_text(
        lines + '{"stage": "rl', encoding="utf-8"
    )  # it was being written
    page = Page(write_report(tmp_path / "report.html", run_dir, "A run"))
    assert not page.named("script")
    text = " ".join(page.text)
    for said in (
        "The first replies of 6 of 29 steps.",
        "no verdict",
        "preference 0.25",
        "#replies",
    ):
        assert said in text or said in [attributes["href"] for attributes in page.named("a")]


def test_the_page_loads_no_other_file(run_dir, tmp_path, clip):
    path = write_report(
        tmp_path / "report.html", run_dir, "A run", None, [answer("low", "low", clip=clip)]
    )
    page = Page(path)
    assert not page.named("script")
    assert not page.named("link")
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:audio/wav;base64,")), (
                tag,
                name,
            )
    assert "default-src 'none'" in page.named("meta")[2]["content"]
    assert "url(" not in path.read_text(encoding="utf-8")
    assert "@import" not in path.read_text(encoding="utf-8")


def test_everything_is_escaped(run_dir, tmp_path, clip):
    hostile = answer(HOSTILE, HOSTILE, task=HOSTILE, reasoning=HOSTILE, question=HOSTILE, clip=clip)
    results = Results(after=score([hostile]))
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    config["stages"][0]["name"] = config["tokenizer"] = HOSTILE
    (run_dir / "config.json").write_text(json.dumps(config), encoding="utf-8")
    path = write_report(tmp_path / "report.html", run_dir, HOSTILE, results, [hostile])
    page = Page(path)
    assert not page.named("script")
    assert not page.named("img")
    text = "".join(page.text)
    shown = HOSTILE.replace("\x00", "\u2400").replace("\x1b", "\u241b")
    assert (
        text.count(shown) >= 8
    )  # title, heading, task, question, expected, reasoning, reply, stage, tokenizer
    assert not set(path.read_text(encoding="utf-8")) & set(map(chr, range(9)))


def test_every_picture_and_player_has_a_name(run_dir, tmp_path, clip):
    given = [answer("low", "low", clip=clip)]
    page = Page(
        write_report(tmp_path / "report.html", run_dir, "A run", Results(after=score(given)), given)
    )
    for attributes in page.named("svg") + page.named("audio"):
        assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    for _, attributes in page.elements:
        assert attributes.get("aria-labelledby", identifiers[0]) in identifiers
        assert attributes.get("href", f"#{identifiers[0]}")[1:] in identifiers


def test_its_colours_can_be_told_from_their_background():
    style = (
        resources.files("stepaudio_jax.reports").joinpath("report.html").read_text(encoding="utf-8")
    )
    for scheme in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", scheme))
        for background in ("page", "card"):
            for name in (
                "ink",
                "muted",
                "right",
                "wrong",
                *(f"colour-{index}" for index in range(COLOURS)),
            ):
                assert contrast(colours[name], colours[background]) >= 4.5, (name, background)


def contrast(one, other):
    """Returns the contrast ratio of two relative luminances, as WCAG 2.2 defines it."""
    luminances = []
    for colour in (one, other):
        channels = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        luminances.append(linear @ [0.2126, 0.7152, 0.0722])
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


def test_a_long_clip_is_named_instead_of_embedded(run_dir, tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.full(21 * SAMPLE_RATE, 0.1, np.float32), SAMPLE_RATE)
    page = Page(
        write_report(
            tmp_path / "report.html", run_dir, "A run", None, [answer("low", "low", clip=path)]
        )
    )
    assert not page.named("audio")
    assert f"A clip of 21.0 s, too long for this page: {path}" in "".join(page.text)


def test_a_missing_clip_is_an_error_and_writes_nothing(run_dir, tmp_path):
    with pytest.raises(AudioError, match=r"gone\.wav"):
        write_report(
            tmp_path / "report.html",
            run_dir,
            "A run",
            None,
            [answer("low", "low", clip=tmp_path / "gone.wav")],
        )
    assert not (tmp_path / "report.html").exists()


def test_a_finished_run_says_how_large_its_model_is(run_dir, tmp_path):
    model = run_dir / "model"
    model.mkdir()
    write_checkpoint_config(model, ModelConfig.presets()["tiny"], {})
    page = Page(write_report(tmp_path / "report.html", run_dir, "A run"))
    assert "389,440 (adaptor 28,928, decoder 127,552, encoder 232,960)" in "".join(page.text)


def test_examples_are_spread_over_each_task_and_show_a_mistake():
    given = (
        answers("rate", n=30, correct=25)
        + answers("pitch", n=2, correct=2)
        + answers("sum", n=9, correct=0)
    )
    chosen = select_examples(given, per_task=3, wrong_per_task=1)
    assert [answer.question.id for answer in chosen] == [
        *("rate-0", "rate-10", "rate-20", "rate-25"),
        *("pitch-0", "pitch-1"),
        *("sum-0", "sum-1", "sum-3", "sum-6"),
    ]
    assert select_examples([]) == []


def test_a_run_without_metrics_has_a_report(run_dir, tmp_path):
    (run_dir / "metrics.jsonl").write_text("", encoding="utf-8")
    page = Page(write_report(tmp_path / "report.html", run_dir, "A run"))
    assert "Nothing has been logged yet." in page.text
    assert "0 of 100" in page.text


def test_a_last_line_cut_short_is_left_out(run_dir, tmp_path):
    with (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"stage": "sft", "step": 20, "loss/next_tok')
    page = Page(write_report(tmp_path / "report.html", run_dir, "A run"))
    assert "10 of 100" in page.text


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"stage": "sft"', "is not JSON"),
        ('{"step": 3}', "'stage'"),
        ('{"stage": "sft", "step": 3.5}', "'step'"),
        ('{"stage": "sft", "step": 3, "loss": "low"}', "'loss' must be a number, got 'low'"),
        ("[]", "must be an object"),
        ("", "is not JSON"),
    ],
)
def test_a_broken_line_is_named(run_dir, tmp_path, line, complaint):
    path = run_dir / "metrics.jsonl"
    path.write_text(f'{{"stage": "sft", "step": 1}}\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError, match=rf"{path}:2.*{complaint}"):
        write_report(tmp_path / "report.html", run_dir, "A run")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_folder_that_is_no_run_is_named(run_dir, tmp_path, name):
    (run_dir / name).unlink()
    with pytest.raises(DataError, match=rf"{run_dir / name} does not exist"):
        write_report(tmp_path / "report.html", run_dir, "A run")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="gone is not a folder"):
        write_report(tmp_path / "report.html", tmp_path / "gone", "A run")


def test_launch_report_writes_a_page_or_exits_with_code_2(run_dir, tmp_path):
    command = [sys.executable, "-m", "launch.report", str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{run_dir / 'report.html'}\n"
    assert "run" in Page(run_dir / "report.html").text
    failed = subprocess.run(
        [*command[:-1], str(tmp_path / "gone")], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2
    assert (
        failed.stderr == f"error: {tmp_path / 'gone'} is not a folder; name the run_dir of a run\n"
    )
