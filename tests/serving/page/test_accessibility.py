"""What axe-core says of the page, at two widths, in both themes; and that nothing sticks out."""

import importlib.resources

import pytest

from tests.serving.page.conftest import CLIPS
from tests.serving.page.scripted_api import ScriptedModel, serving

expect = pytest.importorskip("playwright.sync_api").expect
pytest.importorskip("axe_playwright_python", reason="axe-core is in axe-playwright-python")


def faults(page):
    """Returns the faults that axe-core finds, with the elements that have them."""
    script = importlib.resources.files("axe_playwright_python") / "axe.min.js"
    page.evaluate(script.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        (item["impact"], item["id"], [node["html"][:120] for node in item["nodes"]])
        for item in found["violations"]
    ]


def check(page):
    found = [fault for fault in faults(page) if fault[0] in ("serious", "critical")]
    assert found == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize(
    ("width", "theme"),
    [(1280, "light"), pytest.param(400, "dark", marks=pytest.mark.slow)],
)
def test_no_serious_fault(tmp_path, open_page, width, theme):
    reply = "An answer. " * 20 + "x" * 300
    model = ScriptedModel(lambda number, body: ("Thinking. " * 200, reply + str(number)))
    with serving(model, preferences_folder=str(tmp_path / "s")) as (address, _):
        page = open_page(address, width=width, color_scheme=theme)
        check(page)
        page.click("#toggle-settings")
        page.set_input_files("#file", CLIPS / "river.flac")
        expect(page.locator("#clips li")).to_have_count(1)
        check(page)
        page.fill("#text", "Hello? " + "y" * 300)
        page.click("#send")
        expect(page.locator("#status")).to_have_text("The reply is complete.")
        check(page)
        page.click("#mode-compare")
        check(page)
        page.fill("#compare input", "ann")
        page.keyboard.press("Enter")
        page.click("#compare summary")
        page.fill("#compare details textarea", "Greets.")
        check(page)
        page.fill("#text", "Hello?")
        page.click("#send")
        expect(page.locator("#verdict-form")).to_be_visible()
        check(page)
