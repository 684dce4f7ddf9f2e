"""A simulated user behind a real HTTP server, and a command that speaks its words."""

import pathlib
import sys
import textwrap

from tests.judge.judge_server import JudgeServer

END = "[END]"


def counted_words(body: dict) -> str:
    """Returns words that depend on the dialogue's length, and on the seed of the request."""
    said = sum(message["role"] == "assistant" for message in body["messages"])
    return f"Turn {said}: what is {body['seed'] % 5} plus {said}?"


def user_server(write=counted_words) -> JudgeServer:
    """Starts a server that plays the user."""
    return JudgeServer(write)


def write_speaker(folder: pathlib.Path) -> tuple[str, ...]:
    """Writes a small program that speaks, and returns the command: 0.4 s of a tone for the words.

    With an argument it writes a file there, else to its standard output.
    """
    script = folder / "speak.py"
    script.write_text(
        textwrap.dedent(
            """
            import array, io, math, sys, wave, zlib

            words = sys.stdin.read()
            assert words.endswith("\\n") and words.strip(), words
            hertz = 200 + zlib.crc32(words.encode()) % 2000
            samples = (int(8000 * math.sin(hertz * n / 8000 * 6.2832)) for n in range(3200))
            content = io.BytesIO()
            with wave.open(content, "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(array.array("h", samples).tobytes())
            if len(sys.argv) > 1:
                open(sys.argv[1], "wb").write(content.getvalue())
            else:
                sys.stdout.buffer.write(content.getvalue())
            """
        ),
        encoding="utf-8",
    )
    return (sys.executable, "-I", "-S", str(script))
