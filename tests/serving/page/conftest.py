"""A headless browser whose microphone hears a clip, and pages of it that must stay quiet."""

import os
import pathlib
import shutil

import pytest
import soundfile

CLIPS = pathlib.Path(__file__).resolve().parents[3] / "examples" / "clips"
MICROPHONE = CLIPS / "camel.flac"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser():
    """Returns the path of a browser of this machine; None where there is none."""
    chosen = os.environ.get("STEPAUDIO_JAX_CHROMIUM")
    return chosen or next(filter(None, map(shutil.which, _NAMES)), None)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Returns headless Chromium, whose microphone plays a clip over and over."""
    playwright_api = pytest.importorskip(
        "playwright.sync_api", reason="the page's tests need the package playwright"
    )
    executable = find_browser()
    if executable is None:
        pytest.skip("the page's tests need Chromium (Debian: apt-get install chromium)")
    microphone = tmp_path_factory.mktemp("microphone") / "speech.wav"
    samples, rate = soundfile.read(MICROPHONE)
    soundfile.write(microphone, samples, rate, subtype="PCM_16")
    playwright_api.expect.set_options(timeout=60_000)
    with playwright_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=executable,
            args=[
                "--no-sandbox",
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={microphone}",
            ],
        )
        yield opened
        opened.close()


class Watched:
    """Collects what a page must not do: script errors, and requests to other hosts."""

    def __init__(self, context, address):
        self.problems = []
        self._address = address
        context.on("page", self._watch)

    def _watch(self, page):
        page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        page.on("console", self._heard)
        page.on("request", self._asked)

    def _heard(self, message):
        # A refused request is logged by the browser; the page says it where people look.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.problems.append(f"console: {message.text}")

    def _asked(self, request):
        if not request.url.startswith((self._address, "blob:", "data:")):
            self.problems.append(f"asked {request.url}")


@pytest.fixture
def open_page(browser):
    """Returns a function that opens an address in a new context; it checks that all was quiet."""
    opened = []

    def open_address(address, *, width=1280, height=900, **options):
        context = browser.new_context(
            viewport={"width": width, "height": height},
            permissions=["microphone", "clipboard-read", "clipboard-write"],
            locale="en-US",
            **options,
        )
        context.set_default_timeout(60_000)
        watched = Watched(context, address)
        opened.append((context, watched))
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_address
    for context, watched in opened:
        context.close()
        assert watched.problems == []
