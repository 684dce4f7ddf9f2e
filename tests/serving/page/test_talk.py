"""Talking to a model through the page, in a real browser."""

import ast
import json
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from stepaudio_jax.data import read_records
from stepaudio_jax.data.clips import load_clip
from tests.serving.page.conftest import CLIPS, MICROPHONE
from tests.serving.page.scripted_api import ScriptedModel, serving, sound_of

expect = pytest.importorskip("playwright.sync_api").expect
MARKUP = (
    '<img src=x onerror="window.touched=1"><script>window.touched=1</script>'
    "[x](javascript:window.touched=1) </div><style>*{display:none}</style> 你好 &amp;"
)


@pytest.fixture(scope="module")
def model():
    return ScriptedModel()


@pytest.fixture(scope="module")
def address(model):
    with serving(model) as (url, _):
        yield url


def say(page, text):
    page.fill("#text", text)
    page.click("#send")


def done(page):
    expect(page.locator("#status")).to_have_text("The reply is complete.")


def record(page, seconds):
    page.click("#record")
    expect(page.locator("#record")).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(1000 * seconds)
    page.click("#record")
    expect(page.locator("#clips li")).to_have_count(1)


def test_voice_file_and_text_are_one_turn(address, model, open_page):
    model.script = lambda number, body: ("It is a word.", MARKUP)
    page = open_page(address)
    record(page, 1.2)
    page.set_input_files("#file", CLIPS / "river.flac")
    expect(page.locator("#clips li")).to_have_count(2)
    expect(page.locator("#clips .seconds").nth(1)).to_have_text("2.2 s")
    page.fill("#text", "Which words?")
    page.keyboard.press("Enter")
    done(page)
    assert page.inner_text(".answer").strip() == MARKUP
    assert page.inner_text(".reasoning .words").strip() == "It is a word."
    assert page.evaluate("window.touched") is None
    content = model.requests[-1]["messages"][-1]["content"]
    assert [part["type"] for part in content] == ["input_audio", "input_audio", "text"]
    (recorded, rate), (uploaded, _) = sound_of(model.requests[-1])
    assert (rate, recorded.ndim) == (16000, 1)
    assert 0.8 * 16000 < len(recorded) < 20 * 16000
    np.testing.assert_array_equal(uploaded, soundfile.read(CLIPS / "river.flac")[0])
    assert _likeness(recorded, soundfile.read(MICROPHONE)[0]) > 0.8


def _likeness(recorded, played):
    """Returns the largest correlation of a piece of a recording with what was played, in loops."""
    piece = recorded[4000:14000]
    looped = np.tile(played, 3)
    size = len(looped) + len(piece)
    spectrum = np.fft.rfft(looped, size) * np.conj(np.fft.rfft(piece, size))
    products = np.fft.irfft(spectrum, size)[: len(looped) - len(piece)]
    energy = np.convolve(looped**2, np.ones(len(piece)), "valid")[: len(products)]
    return float(np.max(np.abs(products) / np.sqrt(energy * np.sum(piece**2) + 1e-9)))


@pytest.mark.slow
def test_stop_edit_and_regenerate(address, model, open_page):
    model.script = lambda number, body: ("Hm. " * 30, f"Reply to {body['messages'][-1]['content']}")
    model.delay_s = 0.2
    page = open_page(address)
    page.click("#toggle-settings")
    page.fill("#system", "Be kind.")
    page.fill("#temperature", "0.3")
    cancelled = model.cancelled
    say(page, "one")
    expect(page.locator(".reasoning .words")).to_contain_text("Hm. Hm.")
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.locator(".turn.assistant .hint")).to_have_text("Stopped.")
    model.delay_s = 0.0
    for _ in range(100):
        if model.cancelled > cancelled:
            break
        page.wait_for_timeout(50)
    assert model.cancelled == cancelled + 1
    page.click("#regenerate")
    done(page)
    expect(page.locator(".answer")).to_have_text("Reply to one")
    say(page, "two")
    expect(page.locator(".answer")).to_have_count(2)
    done(page)
    sent = model.requests[-1]
    assert sent["temperature"] == 0.3
    assert [(each["role"], each["content"]) for each in sent["messages"]] == [
        ("system", "Be kind."),
        ("user", "one"),
        ("assistant", "Reply to one "),
        ("user", "two"),
    ]
    page.click(".turn.user button:text('Edit') >> nth=0")
    page.fill("#text", "three")
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_count(1)
    expect(page.locator(".answer")).to_have_text("Reply to three")
    assert len(model.requests[-1]["messages"]) == 2


def test_a_dialogue_leaves_as_commands_and_as_training_data(address, model, open_page, tmp_path):
    model.script = lambda number, body: ("Quoting.", "It's \"quoted\" \\ 'END_OF_BODY'\n$HOME `ls`")
    page = open_page(address)
    page.set_input_files("#file", CLIPS / "camel.flac")
    expect(page.locator("#clips li")).to_have_count(1)
    page.fill("#clips input", "camel")
    say(page, 'What\'s "this"?\nEND_OF_BODY $HOME')
    done(page)
    first = model.requests[-1]
    page.click("#copy-curl")
    expect(page.locator("#status")).to_have_text("Copied.")
    if shutil.which("curl"):
        command = page.evaluate("navigator.clipboard.readText()")
        subprocess.run(["bash", "-c", command], check=True, capture_output=True)
        assert model.requests[-1]["messages"] == first["messages"]
    page.click("#copy-python")
    page.wait_for_function("async () => !(await navigator.clipboard.readText()).startsWith('curl')")
    program = ast.parse(page.evaluate("navigator.clipboard.readText()"))
    (loads,) = [
        node
        for node in ast.walk(program)
        if isinstance(node, ast.Assign) and node.targets[0].id == "messages"
    ]
    assert json.loads(loads.value.args[0].value) == first["messages"]
    with page.expect_download() as download:
        page.click("#export")
    path = tmp_path / "dialogue.jsonl"
    download.value.save_as(path)
    (record,) = read_records(path)
    (clip,) = record.messages[0].audio
    assert clip.transcript == "camel"
    np.testing.assert_allclose(load_clip(clip), soundfile.read(CLIPS / "camel.flac")[0], atol=1e-4)
    reply = record.messages[-1]
    assert reply.reasoning.strip() == "Quoting."
    assert reply.text.strip() == "It's \"quoted\" \\ 'END_OF_BODY'\n$HOME `ls`"


@pytest.mark.slow
def test_errors_are_said_and_nothing_is_lost(address, model, open_page, tmp_path):
    from stepaudio_jax.errors import ApiError
    from stepaudio_jax.serving.errors import error_response

    model.script = lambda number, body: error_response(ApiError(429, "the queue is <b>full</b>"))
    page = open_page(address)
    nonsense = tmp_path / "notes.wav"
    nonsense.write_text("no sound")
    page.set_input_files("#file", nonsense)
    expect(page.locator("#status")).to_contain_text("is no sound")
    say(page, "hello")
    expect(page.locator("#status")).to_have_text("the queue is <b>full</b>")
    expect(page.locator(".turn.user .words")).to_have_text("hello")
    model.script = lambda number, body: ("", "Now.")
    page.click("#regenerate")
    done(page)
    expect(page.locator(".answer")).to_have_text("Now. ")
    expect(page.locator(".reasoning")).to_be_hidden()
    page.click("#send")
    expect(page.locator("#status")).to_contain_text("first")


@pytest.mark.slow
def test_a_reload_brings_the_dialogue_back_and_tabs_are_apart(address, model, open_page):
    model.script = lambda number, body: ("Long.", "word " * 200)
    model.delay_s = 0.05
    page = open_page(address)
    page.set_input_files("#file", CLIPS / "river.flac")
    expect(page.locator("#clips li")).to_have_count(1)
    say(page, "tell me")
    expect(page.locator(".answer")).to_contain_text("word word")
    page.wait_for_timeout(1500)
    page.reload()
    model.delay_s = 0.0
    expect(page.locator(".turn.user .seconds")).to_have_text("2.2 s")
    expect(page.locator(".answer")).to_contain_text("word")
    expect(page.locator(".turn.assistant .hint")).to_have_text("Stopped.")
    other = page.context.new_page()
    other.goto(address)
    expect(other.locator("#empty")).to_be_visible()
    page.click("#new-dialogue")
    page.reload()
    expect(page.locator("#empty")).to_be_visible()


@pytest.mark.slow
def test_an_api_key_is_asked_for(open_page):
    model = ScriptedModel()
    with serving(model, api_keys=("secret",)) as (address, _):
        page = open_page(address)
        expect(page.locator("#status")).to_contain_text("API key")
        page.click("#toggle-settings")
        page.fill("#api_key", "secret")
        page.keyboard.press("Tab")
        expect(page.locator("#model option")).to_have_count(1)
        say(page, "hello")
        done(page)
        page.click("#copy-curl")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert "secret" not in copied
        assert "$API_KEY" in copied


@pytest.mark.slow
def test_both_languages_have_all_words(address, open_page):
    page = open_page(address)
    counts = page.evaluate(
        """async () => {
          const words = await import("/page/words.js");
          return words.languages.map((name) => words.wordKeys(name).sort().join(" "));
        }"""
    )
    assert counts[0] == counts[1]
    page.click("#toggle-settings")
    page.select_option("#language", "zh")
    expect(page.locator("#send")).to_have_text("发送")
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.reload()
    expect(page.locator("#send")).to_have_text("发送")
