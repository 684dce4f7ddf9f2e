"""Files of dialogues for the tests of batch jobs, and a small model that answers them."""

import json

from stepaudio_jax.generation import LoadedModel
from tests.generation.small_model import BYTES, CONFIG, peaked_parameters
from tests.models.random_model import FLOAT32


def small_loaded_model():
    return LoadedModel("small", CONFIG, peaked_parameters(), BYTES, FLOAT32)


def dialogue(*parts, **keys):
    return {"messages": [{"role": "user", "content": list(parts)}], **keys}


def scored(*turns):
    roles = ("user", "assistant")
    return {
        "messages": [
            {"role": roles[index % 2], "content": content} for index, content in enumerate(turns)
        ]
    }


def text(words):
    return {"type": "text", "text": words}


def write_lines(path, *lines):
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines),
        encoding="utf-8",
    )
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").split("\n")[:-1]]


def list_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
