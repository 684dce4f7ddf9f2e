"""Small benchmark folders of the tests' own, in the forms that users download."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

RATE = 16_000
CLIP = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXT_OR_NULL = pa.struct([("text", pa.string()), ("audio", pa.null())])


def tone(frequency_hz, ending="WAV"):
    """The bytes of a sound file of a tenth of a second."""
    samples = 0.1 * np.sin(2 * np.pi * frequency_hz * np.arange(RATE // 10) / RATE)
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), RATE, format=ending)
    return file.getvalue()


def clip(frequency_hz, path=None, ending="WAV"):
    """A clip as `datasets` stores it in a table."""
    return {"bytes": tone(frequency_hz, ending), "path": path}


def write_table(path, rows, types):
    """Writes rows as Parquet; `types` are pyarrow's, and those that are missing are strings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        name: pa.array([row.get(name) for row in rows], types.get(name, pa.string()))
        for name in dict.fromkeys(name for row in rows for name in row)
    }
    pq.write_table(pa.table(columns), path)


def write_json(path, value):
    """Writes a JSON value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_lines(path, rows):
    """Writes JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def prompt_of(item):
    """The parts of an item's prompt: texts as they are, clips by their paths."""
    (message,) = item.record.messages
    return [getattr(part, "text", None) or part.path for part in message.parts]
