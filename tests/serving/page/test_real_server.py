"""The page with the program and a model that ship: spoken questions are answered, and compared."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from stepaudio_jax.data import read_records
from stepaudio_jax.serving.preferences.records import write_records
from tests.serving.page.conftest import CLIPS
from tests.serving.page.test_compare import play
from tests.serving.page.test_talk import done as replied
from tests.serving.page.test_talk import record, say

expect = pytest.importorskip("playwright.sync_api").expect
ROOT = pathlib.Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Serves tiny_base by the program; yields (address, folder of preferences)."""
    folder = tmp_path_factory.mktemp("served") / "study"
    command = [sys.executable, "-m", "launch.serve", "--model", str(ROOT / "models" / "tiny_base")]
    options = ["--port", "0", "--slots", "4", "--slot-tokens", "512", "--preferences", str(folder)]
    process = subprocess.Popen(
        [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        line = ""
        while not line.startswith("ready: "):
            line = process.stdout.readline()
            assert line, f"the server ended with {process.wait()}"
        yield line.split()[1], folder
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()


def test_a_recorded_question_is_answered(served, open_page):
    address, _ = served
    page = open_page(address)
    expect(page.locator("#banner")).to_contain_text("tiny model")
    record(page, 3)
    say(page, "What do you hear?")
    replied(page)
    assert page.inner_text(".answer").strip()
    page.click("#new-dialogue")
    page.set_input_files("#file", CLIPS / "kitchen.flac")
    expect(page.locator("#clips li")).to_have_count(1)
    page.click("#toggle-settings")
    page.fill("#temperature", "0")
    say(page, "What do you hear?")
    replied(page)
    assert "kitchen" in page.inner_text(".answer")


@pytest.mark.parametrize("name", ["speech.webm", "speech_live.webm", "speech.m4a", "speech.mp3"])
def test_files_of_phones_and_browsers_are_heard(served, open_page, formats, name):
    page = open_page(served[0])
    page.set_input_files("#file", formats / "media" / name)
    expect(page.locator("#clips .seconds")).to_contain_text("6.9")
    say(page, "What do you hear?")
    replied(page)
    assert page.inner_text(".answer").strip()


def test_two_samples_are_compared_and_kept(served, open_page):
    address, folder = served
    page = open_page(address)
    page.click("#mode-compare")
    page.fill("#compare input", "ann")
    page.keyboard.press("Enter")
    page.click("#compare summary")
    page.fill("#compare details input >> nth=0", "1.5")
    page.set_input_files("#file", CLIPS / "kitchen.flac")
    expect(page.locator("#clips li")).to_have_count(1)
    page.fill("#clips input", "kitchen")
    page.fill("#text", "What do you hear?")
    page.click("#send")
    expect(page.locator("#verdict-form")).to_be_visible()
    play(page)
    expect(page.locator("#keep")).to_be_enabled()
    same = page.locator('input[name="verdict"]:disabled').count() > 0
    page.check(f'input[name="verdict"][value="{0 if same else 2}"]')
    page.click("#keep")
    expect(page.locator("#status")).to_contain_text("Kept. 1")
    written = write_records(folder)
    assert (written.replies, written.verdicts) == (1, 1)
    (record_read,) = read_records(folder / "records.jsonl")
    assert record_read.messages[0].audio[0].transcript == "kitchen"
    row = json.loads((folder / "records.jsonl").read_text())
    assert row["models"]["chosen"]["model"] == "tiny_base"
