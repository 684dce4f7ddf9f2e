"""Speaks words by a command of the user's: text on its standard input, a sound file out."""

import base64
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from stepaudio_jax.errors import ConfigError, SimulatedUserError
from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.storage import truncate_words
from stepaudio_jax.text import AudioPart

OUTPUT = "{output}"
MAX_SOUND_BYTES = 64 * 2**20
_MAX_MESSAGE_BYTES = 2**16  # of what a program that fails says
_POLL_S = 0.05


class SpeechCommand:
    """Runs a command for each text; no shell is involved.

    Args:
        command: the program and its arguments. In each argument `{output}` stands for the path of
            the sound file to be written; without one it is read from the standard output.
        timeout_s: longest time of the program, in seconds.
        concurrency: commands at the same time.
    """

    def __init__(self, command: Sequence[str], *, timeout_s: float, concurrency: int):
        self._command, self._timeout_s = tuple(command), timeout_s
        self._concurrency = concurrency

    def speak_all(self, texts: Sequence[str]) -> list[AudioPart | SimulatedUserError]:
        """Returns each text as a clip with its transcript, or why there is none.

        Of several processes the first runs the commands, and sends the sound to the others.
        """
        sounds: list[list[str]] | None = None
        if jax.process_index() == 0:
            with ThreadPoolExecutor(self._concurrency) as pool:
                sounds = list(pool.map(self._encoded, texts))
        return [
            SimulatedUserError(problem) if problem else AudioPart(uri, transcript=text)
            for text, (problem, uri) in zip(texts, broadcast_json(sounds), strict=True)
        ]

    def speak(self, text: str) -> bytes:
        """Returns the content of the sound file that the command makes of a text.

        Raises:
            SimulatedUserError: it cannot be started, fails, takes too long, or makes nothing or too
                much.
        """
        with tempfile.TemporaryDirectory(prefix="stepaudio-speech-") as folder:
            path = os.path.join(folder, "speech.wav")
            arguments = [argument.replace(OUTPUT, path) for argument in self._command]
            standard_output = _run(arguments, text, folder, self._timeout_s)
            is_file = arguments != list(self._command)
            source = path if is_file else standard_output
            try:
                with open(source, "rb") as file:
                    sound = file.read()
            except OSError as error:
                raise SimulatedUserError(
                    f"speak: {arguments[0]} ended, and wrote no file to {OUTPUT} ({error.strerror})"
                ) from None
        if not sound:
            wanted = f"the file {OUTPUT}" if is_file else "its output"
            raise SimulatedUserError(f"speak: {arguments[0]} ended, and {wanted} is empty")
        return sound

    def _encoded(self, text: str) -> list[str]:
        """Returns [problem, data URI], one of them empty, JSON-ready."""
        try:
            sound = self.speak(text)
        except SimulatedUserError as error:
            return [str(error), ""]
        kind = "audio/wav" if sound.startswith(b"RIFF") else "application/octet-stream"
        return ["", f"data:{kind};base64,{base64.b64encode(sound).decode()}"]


def check_speech_command(command: Sequence[str]) -> None:
    """Checks that the program of a command is on this machine.

    Raises:
        ConfigError: it is not.
    """
    if command and shutil.which(command[0]) is None:
        raise ConfigError(
            f"speak={tuple(command)!r}: there is no program {command[0]!r} on this machine that may"
            " be run; install it, or write its path. Arguments are items of their own: no shell"
            " splits them"
        )


def _run(arguments: Sequence[str], text: str, folder: str, timeout_s: float) -> str:
    """Runs a command to its end, and returns the path of its standard output.

    It reads and writes files, so that what it starts, and leaves behind, holds nothing up.

    Args:
        arguments: the program and its arguments.
        text: on its standard input.
        folder: an empty one, for the files.
        timeout_s: longest time, in seconds.

    Raises:
        SimulatedUserError: it cannot be started, fails, takes too long or writes too much.
    """
    name, deadline = arguments[0], time.monotonic() + timeout_s
    paths = [os.path.join(folder, file) for file in ("words", "output", "errors")]
    with open(paths[0], "wb") as words:
        # Programs that read line by line speak one line.
        words.write(f"{' '.join(text.split())}\n".encode(errors="replace"))
    with open(paths[0], "rb") as words, open(paths[1], "wb") as out, open(paths[2], "wb") as errors:
        try:
            process = subprocess.Popen(
                arguments, stdin=words, stdout=out, stderr=errors, start_new_session=True
            )
        except OSError as error:
            raise SimulatedUserError(f"speak: {name} cannot be run ({error.strerror})") from None
    problem = ""
    while not problem:
        try:
            process.wait(timeout=min(_POLL_S, timeout_s))
        except subprocess.TimeoutExpired:
            pass
        else:
            break
        if time.monotonic() > deadline:
            problem = f"took longer than speak_timeout_s={timeout_s:g}"
        elif _size(folder) > MAX_SOUND_BYTES:
            problem = f"wrote more than {MAX_SOUND_BYTES} bytes"
    if problem:
        os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
        process.wait()
    elif _size(folder) > MAX_SOUND_BYTES:
        problem = f"wrote more than {MAX_SOUND_BYTES} bytes"
    elif process.returncode != 0:
        with open(paths[2], "rb") as file:
            message = file.read(_MAX_MESSAGE_BYTES).decode(errors="replace")
        said = truncate_words(" ".join(message.split()) or "nothing")
        problem = f"ended with the exit code {process.returncode}; it said: {said}"
    if problem:
        raise SimulatedUserError(f"speak: {name} {problem}")
    return paths[1]


def _size(folder: str) -> int:
    """Returns the bytes of the largest file of a folder; 0 if the command has removed it."""
    try:
        with os.scandir(folder) as entries:
            return max((entry.stat().st_size for entry in entries), default=0)
    except FileNotFoundError:
        return 0
