"""Speaks words by a command of the user's: text on its standard input, a sound file out."""

import base64
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from stepaudio_jax.errors import ConfigError, SimulatedUserError
from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.storage import truncate_words
from stepaudio_jax.text import AudioPart

OUTPUT = "{output}"
MAX_SOUND_BYTES = 64 * 2**20


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
            SimulatedUserError: it cannot be started, fails, takes too long or makes nothing.
        """
        name = self._command[0]
        with tempfile.TemporaryDirectory(prefix="stepaudio-speech-") as folder:
            path = os.path.join(folder, "speech.wav")
            arguments = [argument.replace(OUTPUT, path) for argument in self._command]
            # Programs that read line by line speak one line.
            words = f"{' '.join(text.split())}\n".encode(errors="replace")
            output = _run(arguments, words, self._timeout_s)
            if arguments == list(self._command):
                sound = output
            else:
                try:
                    with open(path, "rb") as file:
                        sound = file.read(MAX_SOUND_BYTES + 1)
                except OSError as error:
                    raise SimulatedUserError(
                        f"speak: {name} ended, and wrote no file to {OUTPUT} ({error.strerror})"
                    ) from None
        if not sound:
            wanted = "the file {output}" if arguments != list(self._command) else "its output"
            raise SimulatedUserError(f"speak: {name} ended, and {wanted} is empty")
        if len(sound) > MAX_SOUND_BYTES:
            raise SimulatedUserError(
                f"speak: {name} made a sound file of more than {MAX_SOUND_BYTES} bytes"
            )
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


def _run(arguments: Sequence[str], words: bytes, timeout_s: float) -> bytes:
    """Runs a command to its end, and returns its standard output.

    Raises:
        SimulatedUserError: it cannot be started, fails or takes too long.
    """
    name = arguments[0]
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise SimulatedUserError(f"speak: {name} cannot be run ({error.strerror})") from None
    with process:
        try:
            output, errors = process.communicate(words, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            # What it has started may hold its output open: all of them end.
            os.killpg(process.pid, signal.SIGKILL)
            raise SimulatedUserError(
                f"speak: {name} took longer than speak_timeout_s={timeout_s:g}"
            ) from None
    if process.returncode != 0:
        message = truncate_words(" ".join(errors.decode(errors="replace").split()) or "nothing")
        raise SimulatedUserError(
            f"speak: {name} ended with the exit code {process.returncode}; it said: {message}"
        )
    return output
