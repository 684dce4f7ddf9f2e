"""The page of benchmark results: complete, self-contained, escaped, of bounded size, playable."""

import base64
import io
import shutil

import numpy as np
import pytest
import soundfile

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.errors import DataError, OutputError
from stepaudio_jax.evaluation.results import JudgeExchange, Reply, make_samples
from stepaudio_jax.evaluation.results_files import (
    RESULTS,
    SAMPLES,
    read_results,
    read_samples,
    write_results,
)
from stepaudio_jax.evaluation.task import ScoredItem
from stepaudio_jax.reports.benchmark_page import write_benchmark_page
from stepaudio_jax.reports.comparison_page import write_comparison
from tests.evaluation.benchmarks import (
    CORRECT,
    UNPARSED,
    WRONG,
    Judging,
    benchmark_results,
    item,
    judged,
    model,
    renamed,
    task_results,
    write_folder,
    write_tone,
)
from tests.reports.page_parser import Page

HOSTILE = """</title><script>alert(1)</script>"'&amp;<img src=x onerror=alert(1)>\x00\x1b"""
OUTCOMES = [CORRECT] * 12 + [WRONG] * 5 + [UNPARSED] * 2 + ["the clip is missing: /data/19.wav"]


@pytest.fixture
def clips(tmp_path):
    """Three real clips, of half a second, 24 seconds and a quarter of a second."""
    return [
        write_tone(tmp_path / "short.wav"),
        write_tone(tmp_path / "long.wav", hertz=330, seconds=24),
        write_tone(tmp_path / "shorter.wav", hertz=660, seconds=0.25),
    ]


@pytest.fixture
def results(tmp_path, clips):
    return write_folder(tmp_path / "results", OUTCOMES, clips=clips)


def judged_folder(folder, count=4):
    """Results of a judged task, with what the judge was asked."""
    scored, samples = [], []
    for number in range(count):
        question = item(number, task="judging", axis="memory")
        score = judged([1.0, 0.5, None][number % 3], "no answer", criteria_met=[True, number])
        exchanges = (JudgeExchange("Is the criterion met?", "criteria_met: true", "Be fair."),
                     JudgeExchange("And the other?", None))  # fmt: skip
        scored.append(ScoredItem(question.id, question.groups, question.cluster, (score,)))
        reply = [Reply("A reply.", "Thoughts.", "length", exchanges)]
        samples += make_samples(Judging(), question, scored[-1], reply)
    task = task_results(Judging, scored, judge=model("the-judge"))
    write_results(folder, benchmark_results(task), samples)
    return folder


def test_the_page_has_table_1_figures_and_what_was_lost(results):
    path = write_benchmark_page(results)
    assert path == results / "report.html"
    page = Page(path)
    text = " ".join(page.text)
    links = [attributes["href"] for attributes in page.named("a")]
    assert links == [
        *("#table-1", "#figures", "#breakdown", "#unparsed", "#errors", "#examples", "#settings"),
        SAMPLES,
    ]
    for said in (
        "Step-Audio-R1.5",
        "60.00#!",  # 12 of 20
        "38.7 to 78.1",
        "MMAU 20 instead of 1000",
        "tones: 1 item has no reply: item-19 (the clip is missing: /data/19.wav)",
        "tones: 2 of 20 replies",
        "tones: 1 of 20 items without a reply",
        "level: easy",
        "✓ right",
        "✗ loses points",
        "unparsed",
        "d" * 64,
        read_results(results).samples_hash,
    ):
        assert said in text, said


def test_clips_are_played_as_the_model_gets_them(results, clips):
    players = Page(write_benchmark_page(results)).named("audio")
    assert len(players) == 6
    assert len({player["aria-label"] for player in players}) == 6
    heard = {}
    for player in players:
        prefix, _, encoded = player["src"].partition(",")
        assert prefix == "data:audio/wav;base64"
        sound, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded)), dtype="float32")
        assert rate == SAMPLE_RATE
        heard[len(sound)] = sound
    for path, length in zip(clips, (8_000, 20 * SAMPLE_RATE, 4_000), strict=True):
        original = soundfile.read(path, dtype="float32")[0][:length]
        np.testing.assert_allclose(heard[length], original, atol=1 / 32768)
    text = " ".join(Page(results / "report.html").text)
    assert "The first 20 s of 24.0 s" in text
    assert "beep, boop" in text


def test_clips_that_are_gone_or_too_many_are_named(results, clips, monkeypatch):
    clips[0].unlink()
    text = " ".join(Page(write_benchmark_page(results)).text)
    assert "A clip that cannot be played: audio" in text
    monkeypatch.setattr("stepaudio_jax.reports.benchmark_page._MAX_CLIP_BYTES", 1)
    page = Page(write_benchmark_page(results))
    assert len(page.named("audio")) == 1
    assert "clips are named only, to keep this page small." in " ".join(page.text)


def test_a_judges_words_are_shown(tmp_path):
    text = " ".join(Page(write_benchmark_page(judged_folder(tmp_path / "judged"))).text)
    for said in (
        "Is the criterion met?",
        "criteria_met: true",
        "Be fair.",
        "No answer.",
        "no verdict: no answer",
        "50.0",
        "length",
        "the-judge",
        "Thoughts.",
    ):
        assert said in text, said


def test_controls_say_how_much_needs_hearing(tmp_path, results):
    silence = write_folder(tmp_path / "silence", [CORRECT] * 3 + [WRONG] * 17, mode="silence")
    same = write_folder(tmp_path / "text", OUTCOMES, mode="transcripts")
    page = Page(write_benchmark_page(results, controls=[silence, same]))
    text = " ".join(page.text)
    assert "#silence" in [attributes["href"] for attributes in page.named("a")]
    assert (
        "tones: 60.00 with the sound, 15.00 with silence only: 45.00 points need hearing." in text
    )
    assert (
        "tones: 60.00 with the sound, 60.00 with transcripts only:"
        " no part of the score is shown to need hearing." in text
    )
    with pytest.raises(DataError, match="controls nothing"):
        write_benchmark_page(results, controls=[results])
    in_silence = write_benchmark_page(silence)
    assert "silence in place of the sound" in " ".join(Page(in_silence).text)


def test_the_page_loads_nothing_and_escapes_everything(tmp_path, results):
    samples = read_samples(results)
    hostile = renamed(
        samples[:14], id=HOSTILE, reply=HOSTILE, reasoning=HOSTILE, data={HOSTILE: HOSTILE}
    )
    task = task_results(
        Judging, [], name="tones", title=HOSTILE, version=HOSTILE, data_folder=HOSTILE, items=20
    )
    folder = tmp_path / "hostile"
    write_results(folder, benchmark_results(task, name=HOSTILE), hostile)
    page = Page(write_benchmark_page(folder, title=HOSTILE))
    assert not page.named("script")
    assert not page.named("img")
    assert not page.named("link")
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:audio/wav;base64,", SAMPLES)), (tag, name)
    assert "default-src 'none'" in page.named("meta")[2]["content"]
    shown = HOSTILE.replace("\x00", "\u2400").replace("\x1b", "\u241b")
    assert "".join(page.text).count(shown) >= 20


@pytest.mark.parametrize("kind", ["page", "comparison"])
def test_every_picture_player_and_region_has_a_name_of_its_own(tmp_path, results, kind):
    path = tmp_path / "page.html"
    if kind == "page":
        write_benchmark_page(results, path)
    else:
        other = write_folder(tmp_path / "other", OUTCOMES[::-1])
        write_comparison(results, other, page=path)
    page = Page(path)
    for attributes in page.named("svg") + page.named("audio"):
        assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    regions = [a["aria-label"] for _, a in page.elements if a.get("role") == "region"]
    assert len(set(regions)) == len(regions)
    for _, attributes in page.elements:
        assert attributes.get("aria-labelledby", identifiers[0]) in identifiers
        href = attributes.get("href", f"#{identifiers[0]}")
        assert href[1:] in identifiers or href.endswith(SAMPLES)


@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_many_items_with_long_replies_make_a_small_page(tmp_path, count):
    outcomes = [(CORRECT, WRONG, UNPARSED, "no reply")[i % 4] for i in range(count)]
    folder = write_folder(tmp_path / "many", outcomes)
    long = renamed(read_samples(folder), reply="x" * 20_000)
    write_results(folder, read_results(folder), long)
    path = write_benchmark_page(folder)
    assert path.stat().st_size < 1_000_000
    text = " ".join(Page(path).text)
    assert f"25 of {count // 4} are shown; all are in" in text
    assert f"50 of {count // 4} are shown; all are in" in text
    assert "16000 characters more" in text


def test_only_a_page_is_replaced(results, tmp_path):
    write_benchmark_page(results)
    write_benchmark_page(results)
    note = tmp_path / "note.txt"
    note.write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="exists already"):
        write_benchmark_page(results, note)
    with pytest.raises(OutputError, match="is the input"):
        write_benchmark_page(results, results / RESULTS)
    assert note.read_text(encoding="utf-8") == "mine"


def test_the_link_to_the_samples_is_relative_to_the_page(results, tmp_path):
    page = Page(write_benchmark_page(results, tmp_path / "pages" / "a.html"))
    assert page.named("a")[-1]["href"] == "../results/samples.jsonl"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_the_page_and_plays_its_clips(results, width):
    """Chromium without a window: no error, no request, no sideways scrolling, every clip plays."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    path = write_benchmark_page(results)
    flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": width, "height": 900})
        problems, addresses = [], []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: addresses.append(request.url))
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        played = page.evaluate(
            """async () => {
              const played = [];
              for (const clip of document.querySelectorAll('audio')) {
                await clip.play();
                await new Promise(done => clip.addEventListener('timeupdate', done, {once: true}));
                played.push([clip.duration, clip.error]);
                clip.pause();
              }
              return played;
            }"""
        )
        browser.close()
    assert sorted({tuple(clip) for clip in played}) == [(0.25, None), (0.5, None), (20, None)]
    assert problems == []
    assert [a for a in addresses if not a.startswith("data:")] == [path.as_uri()]
