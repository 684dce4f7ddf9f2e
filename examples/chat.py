"""Chats about a clip: a reply, a second turn, a stream, and a comparison of two answers.

    python -m examples.chat [MODEL]

Expected, from models/tiny_base on a CPU:

    female, normal, high, English: today the kitchen is here
    and the speaker: female
    streamed: </think> female, normal, high, English: today the kitchen is here
    'female' is more probable than 'male'
"""

import sys
from typing import Any

import soundfile

import stepaudio_jax as sa

CLIP = "examples/clips/kitchen.flac"
GREEDY = {"temperature": 0, "max_new_tokens": 64}


def main(folder: str = "models/tiny_base") -> None:
    """Chats with the model of a folder, and prints what it says."""
    model = sa.load(folder)

    # A list of parts is one user's turn: the path of a clip, and a question about it.
    reply = model.chat([CLIP, "What do you hear?"], **GREEDY)
    print(reply.text)

    # A list of messages is a dialogue. The reply goes into it, and the next question.
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [CLIP, "What do you hear?"]},
        reply.message,
        {"role": "user", "content": "Is the speaker female or male?"},
    ]
    print("and the speaker:", model.chat(messages, **GREEDY).text)

    # Sound in memory is (samples, rate), as soundfile, librosa or a microphone gives it.
    sound = soundfile.read(CLIP)
    pieces = model.stream([sound, "What do you hear?"], **GREEDY)
    print("streamed:", " ".join("".join(pieces).split()))

    # The probability of a given answer, which need not be what the model would say.
    question = {"role": "user", "content": [sound, "Is the speaker female or male?"]}
    scores = {}
    for answer in ("female", "male"):
        (turn,) = model.score([question, {"role": "assistant", "content": answer}])
        scores[answer] = turn.logprob
    first, second = sorted(scores, key=scores.__getitem__, reverse=True)
    print(f"{first!r} is more probable than {second!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
