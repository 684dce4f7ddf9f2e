"""A session of verdicts in the browser while the server is killed at random."""

import json
import random
import signal
import socket
import subprocess
import sys
import time

import pytest

from stepaudio_jax.serving.preferences.journals import read_study
from tests.serving.preferences.test_store import pairs_file

expect = pytest.importorskip("playwright.sync_api").expect
VERDICTS, KILLS = 50, 10


def start(port, folder, pairs):
    """Starts the server, and waits until it answers."""
    command = [sys.executable, "-m", "tests.serving.page.scripted_server"]
    process = subprocess.Popen([*command, str(port), str(folder), str(pairs)])
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            assert process.poll() is None
            time.sleep(0.1)


@pytest.mark.slow
def test_no_acknowledged_verdict_is_lost_and_none_is_there_twice(tmp_path, open_page):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, pairs = tmp_path / "study", pairs_file(tmp_path / "pairs.jsonl", VERDICTS)
    rng = random.Random(0)
    kills = {*rng.sample(range(VERDICTS), KILLS)}
    server = start(port, folder, pairs)
    try:
        page = open_page(f"http://127.0.0.1:{port}/")
        page.click("#mode-compare")
        page.fill("#compare input", "ann")
        page.keyboard.press("Enter")
        page.click("text=Prepared pairs")
        status = page.locator("#status")
        acknowledged = []
        for number in range(VERDICTS):
            expect(page.locator("#keep")).to_be_visible()
            level = rng.choice([-3, -2, -1, 1, 2, 3])
            page.check(f'input[name="verdict"][value="{level}"]')
            page.evaluate("document.getElementById('keep').click()")
            if number in kills:
                time.sleep(rng.random() * 0.05)
                server.send_signal(signal.SIGKILL)
                server.wait()
                server = start(port, folder, pairs)
            expect(status).to_contain_text("ept")  # Kept, or Not kept
            if "Not kept" in status.inner_text():
                page.click("#keep")
            expect(status).to_have_text(f"Kept. {number + 1} verdicts so far.")
            acknowledged.append(level)
            page.click("#next")
            expect(status).not_to_contain_text("Kept")
    finally:
        server.kill()
        server.wait()
    study = read_study(folder)
    kept = [item.annotation for item in study.verdicts.values()]
    shown = [item.verdict if item.shown_first == "a" else -item.verdict for item in kept]
    assert shown == acknowledged
    lines = (folder / "verdicts.jsonl").read_text().splitlines()
    assert len({json.loads(line)["assignment"] for line in lines}) == len(lines) == VERDICTS
