"""Studies for the tests: comparisons as the page sends them, with real sound."""

import base64
import io

import numpy as np
import soundfile

from stepaudio_jax.serving.preferences.wire import take_comparison

RUBRIC = [{"criterion": "greets", "weight": 1.0}, {"criterion": "lectures", "weight": -1.0}]


def wav(seconds=0.5, *, hz=440.0):
    """Returns a tone as the content of a WAV file."""
    file = io.BytesIO()
    time = np.arange(round(seconds * 16000)) / 16000
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * hz * time), 16000, format="WAV")
    return file.getvalue()


def sound(seconds=0.5, **keys):
    """Returns a part of a turn in OpenAI's form."""
    data = base64.b64encode(wav(seconds)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}, **keys}


def side(*replies, user="And then?"):
    """Returns a continuation: one reply, or several with the same user's turn between them."""
    turns = []
    for reply in replies:
        if turns:
            turns.append({"role": "user", "content": user})
        turns.append({"role": "assistant", "reasoning_content": "Hm.", "content": reply})
    return {"turns": turns, "model": "m", "sampling": {"temperature": 0.7}}


def comparison(a="Hello!", b="No.", content="Hi?", **keys):
    """Returns a comparison as the page sends it."""
    messages = [{"role": "user", "content": content}]
    sides = {
        name: side(*([text] if isinstance(text, str) else text))
        for name, text in (("a", a), ("b", b))
    }
    return {"messages": messages, **sides, **keys}


def compare(store, annotator="ann", **keys):
    """Keeps a comparison, as its route does; returns the assignment."""
    with store.adding_clips() as add_clip:
        taken = take_comparison(comparison(**keys), add_clip, max_clips=4)
        return store.compare(annotator, taken, 60.0)


def verdict(assignment, level=1, **keys):
    """Returns a verdict as the page sends it; above 0 the first shown is better."""
    return {
        "id": f"v-{assignment.id}",
        "assignment": assignment.id,
        "annotator": assignment.annotator,
        "verdict": level,
        "seconds_listened": assignment.seconds,
        **keys,
    }


def prefer(store, assignment, name, level=2, **keys):
    """Gives a verdict for continuation a or b, wherever it stands."""
    sign = 1 if assignment.shown_first == name else -1
    return store.judge(verdict(assignment, sign * level, **keys))
