"""Comparing through the page: two replies, two dialogues, prepared pairs; by mouse and keyboard."""

import json
import re

import pytest

from stepaudio_jax.data import read_records
from stepaudio_jax.serving.preferences.journals import read_study
from stepaudio_jax.serving.preferences.records import write_records
from tests.serving.page.conftest import CLIPS
from tests.serving.page.scripted_api import ScriptedModel, serving
from tests.serving.preferences.test_store import pairs_file, with_settings

expect = pytest.importorskip("playwright.sync_api").expect


def start(page, name="ann"):
    page.click("#mode-compare")
    page.fill("#compare input", name)
    page.keyboard.press("Enter")


def play(page):
    """Plays the turn's sound, once the page has it."""
    expect(page.locator("#compare audio").first).to_have_attribute("src", re.compile("^blob:"))
    page.evaluate("document.querySelector('#compare audio').play()")


def test_two_replies_to_a_spoken_turn(tmp_path, open_page):
    model = ScriptedModel(lambda number, body: ("Hm.", f"<b>Reply {number}</b>"))
    folder = with_settings(tmp_path / "study", consent="Your voice is kept.\n<b>Here.</b>")
    with serving(model, preferences_folder=str(folder)) as (address, _):
        page = open_page(address)
        page.click("#mode-compare")
        expect(page.locator(".consent")).to_contain_text("<b>Here.</b>")
        start(page)
        page.click("#compare summary")
        page.fill("#compare details textarea", "Greets.\n- Lectures.")
        page.set_input_files("#file", CLIPS / "river.flac")
        expect(page.locator("#clips li")).to_have_count(1)
        page.fill("#clips input", "river")
        page.click("#send")
        expect(page.locator("#heard")).to_contain_text("0.0 of 2.2 s")
        expect(page.locator("#keep")).to_be_disabled()
        play(page)
        expect(page.locator("#keep")).to_be_enabled()
        shown = page.locator(".side .answer").all_inner_texts()
        page.click("#keep")
        expect(page.locator("#status")).to_contain_text("met or not met")
        page.check('input[name="verdict"][value="3"]')
        for side, value in (("first", "met"), ("second", "not_met")):
            page.check(f'input[name="criterion-0-{side}"][value="{value}"]')
            page.check(f'input[name="criterion-1-{side}"][value="not_met"]')
        page.check('input[value="tone"]')
        page.fill("#verdict-form textarea >> nth=0", "Too cold.")
        page.reload()  # what was not sent is shown again, and judged once
        page.click("#mode-compare")
        expect(page.locator(".side .answer").first).to_have_text(shown[0].strip())
        play(page)
        expect(page.locator("#keep")).to_be_enabled()
        page.check('input[name="verdict"][value="3"]')
        for side, value in (("first", "met"), ("second", "not_met")):
            page.check(f'input[name="criterion-0-{side}"][value="{value}"]')
            page.check(f'input[name="criterion-1-{side}"][value="not_met"]')
        page.check('input[value="tone"]')
        page.fill("#verdict-form textarea >> nth=0", "Too cold.")
        page.click("#keep")
        expect(page.locator("#status")).to_contain_text("Kept. 1")
        page.click("text=Go on with the left reply")
        page.fill("#text", "And then?")
        page.click("#send")
        expect(page.locator("#verdict-form")).to_be_visible()
        assert model.requests[-1]["messages"][1]["content"] == shown[0].strip()
        page.click("#skip")
        expect(page.locator("#status")).to_contain_text("Kept. 2")
    assert write_records(folder).replies == 1
    (record,) = read_records(folder / "records.jsonl")
    (annotation,) = record.annotations
    assert record.reference_reply.strip() == shown[0].strip()
    assert record.rejected_reply.strip() == shown[1].strip()
    assert (record.margin, annotation.verdict, annotation.shown_first) == (3, 3, "a")
    assert record.reference_meets == (True, False)
    assert [criterion.weight for criterion in record.rubric] == [1.0, -1.0]
    assert (annotation.reasons, annotation.critique) == (("tone",), "Too cold.")
    assert annotation.seconds_listened > 1.8
    assert record.messages[0].audio[0].transcript == "river"


@pytest.mark.slow
def test_two_dialogues_side_by_side(tmp_path, open_page):
    model = ScriptedModel(lambda number, body: ("Hm.", f"Reply {number}."))
    folder = tmp_path / "study"
    with serving(model, preferences_folder=str(folder)) as (address, _):
        page = open_page(address)
        start(page)
        page.click("text=Two dialogues")
        for number, text in enumerate(("Hello?", "Go on."), 1):
            page.fill("#text", text)
            page.click("#send")
            expect(page.locator(".side .answer")).to_have_count(2 * number)
        shown = [side.inner_text() for side in page.locator(".side .answer").all()]
        page.click("#judge-dialogues")
        expect(page.locator("#verdict-form")).to_be_visible()
        judged = [side.inner_text() for side in page.locator(".side .answer").all()]
        assert judged == shown  # a side stays where it was
        page.check('input[name="verdict"][value="-2"]')
        page.click("#keep")
        expect(page.locator("#status")).to_contain_text("Kept. 1")
    assert write_records(folder).dialogues == 1
    (row,) = map(json.loads, (folder / "dialogues.jsonl").read_text().splitlines())
    assert [turn["role"] for turn in row["chosen"]] == ["assistant", "user", "assistant"]
    assert row["chosen"][-1]["content"] == judged[-1].strip()


@pytest.mark.slow
def test_prepared_pairs_by_keyboard_only_in_two_tabs(tmp_path, open_page):
    folder = with_settings(tmp_path / "study", levels=5)
    pairs = pairs_file(tmp_path / "pairs.jsonl", 2)
    model = ScriptedModel()
    with serving(model, preferences_folder=str(folder), pairs=str(pairs)) as (address, _):
        page = open_page(address)
        tab_to(page, "mode-compare")
        page.keyboard.press("Enter")
        expect(page.locator("#compare input")).to_be_visible()
        tab_to(page, None, "#compare input")
        page.keyboard.type("ann")
        page.keyboard.press("Enter")
        tab_to(page, None, "#compare button:text('Prepared')")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_have_text("1 pairs left")
        other = page.context.new_page()
        other.goto(address)
        other.wait_for_selector("html[data-ready]")
        other.click("#mode-compare")
        other.click("text=Prepared pairs")
        expect(other.locator(".side .answer")).to_have_count(2)
        assert (
            other.locator(".side .answer").all_inner_texts()
            == page.locator(".side .answer").all_inner_texts()
        )
        tab_to(page, None, 'input[name="verdict"]')
        page.keyboard.press("Space")
        page.keyboard.press("ArrowRight")
        tab_to(page, "keep")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_have_text("Kept. 1 verdicts so far.")
        other.check('input[name="verdict"][value="0"]')
        other.click("#keep")
        expect(other.locator("#status")).to_contain_text("judged already")
        expect(other.locator("#next")).to_be_visible()
        assert page.evaluate("document.activeElement.id") == "next"
        page.keyboard.press("Enter")
        expect(page.locator("#skip")).to_be_visible()
        tab_to(page, "skip")
        page.keyboard.press("Enter")
        expect(page.locator("#next")).to_be_visible()
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("No pair is left")
    verdicts = read_study(folder).verdicts.values()
    assert [abs(item.annotation.verdict or 0) for item in verdicts] == [1, 0]


def tab_to(page, identity, selector=None):
    """Presses Tab until an element has the focus."""
    selector = selector or f"#{identity}"
    wanted = page.locator(selector).first
    for _ in range(60):
        if wanted.evaluate("(node) => node === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached by Tab")
