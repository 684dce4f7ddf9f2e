"""Rows of other libraries, adapted and read as a source reads them."""

import json

import pytest

from stepaudio_jax.data.containers.base import Row
from stepaudio_jax.data.record import Record
from stepaudio_jax.data.sources.forms import FormOptions, to_project_form
from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.errors import DataError
from stepaudio_jax.text.dialogue import AudioPart

ORIGIN = "d.jsonl:7"


def user(text):
    return {"role": "user", "content": text}


def reply(text):
    return {"role": "assistant", "content": text}


def adapted(value, **options):
    """The row in the project's form."""
    return to_project_form(Row(value, ORIGIN, "/data", "d:7"), FormOptions(**options))


def parsed(value) -> Record:
    return parse_record(value, origin=ORIGIN, folder="/data", source="d", default_id="d:7")


def record(value, **options) -> Record:
    """The record that a row becomes."""
    return parsed(adapted(value, **options))


def dialogue(value, **options):
    """The turns of a row in short: (role, text with <PATH> for each clip)."""
    return [
        (
            message.role,
            "".join(
                f"<{part.path.removeprefix('/data/')}>"
                if isinstance(part, AudioPart)
                else part.text
                for part in message.parts
            ),
        )
        for message in record(value, **options).messages
    ]


def refused(value, **options) -> str:
    """What is said of a row, after its file and line; it is one line of a readable length."""
    with pytest.raises(DataError) as error:
        record(json.loads(json.dumps(value)), **options)
    said = str(error.value)
    assert said.startswith(f"{ORIGIN}: ")
    assert said.isprintable()
    assert len(said) < 600
    return said.removeprefix(f"{ORIGIN}: ")
