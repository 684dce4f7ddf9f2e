"""JSON arrays: any nesting and any block size, and the place where one is cut off."""

import gzip
import json
import random

import pytest

from stepaudio_jax.data.containers import json_array
from stepaudio_jax.data.containers.json_array import JsonArray, open_json
from stepaudio_jax.data.containers.jsonl import JsonlRows
from stepaudio_jax.errors import DataError


def random_value(generator: random.Random, depth: int = 0) -> object:
    """A value with the characters that a scan could take for the end of a string or an object."""
    kind = generator.random()
    if depth > 3 or kind < 0.4:
        return generator.choice(['a"b\\', "{[", "é好", "", "x" * 50, '\\"', "\n", 1.5, None, True])
    if kind < 0.6:
        return [random_value(generator, depth + 1) for _ in range(generator.randrange(4))]
    return {
        f'{number}"{{': random_value(generator, depth + 1)
        for number in range(generator.randrange(4))
    }


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 64, 1 << 20])
def test_elements_are_those_that_json_reads(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(json_array, "_BLOCK_BYTES", block_bytes)
    generator = random.Random(block_bytes)
    path = tmp_path / "d.json"
    for indent in (None, 1, 4):
        values = [{"v": random_value(generator)} for _ in range(8)] + [[], {}]
        text = json.dumps(values, indent=indent, ensure_ascii=generator.random() < 0.5)
        path.write_text(text, encoding="utf-8")
        rows = JsonArray(path)
        assert [rows.row(index).value for index in range(len(rows))] == values
        for _ in range(5):  # a cut anywhere is noticed
            path.write_bytes(text.encode()[: generator.randrange(len(text.encode()))])
            with pytest.raises(DataError, match=r"cut off|no array"):
                JsonArray(path)


def test_rows_have_the_place_in_the_array(tmp_path):
    path = tmp_path / "d.json"
    path.write_text('\ufeff [\n{"a": 1},\n{"a": 2}\n]\n', encoding="utf-8")
    rows = JsonArray(path)
    row = rows.row(1)
    assert (row.value, row.origin) == ({"a": 2}, f"{path}#1")
    assert (row.folder, row.default_id) == (str(tmp_path), "d:1")
    assert rows.origin(0) == f"{path}#0"
    path.write_text("[]")
    assert len(JsonArray(path)) == 0


def test_the_samples_of_llama_factory(formats):
    rows = JsonArray(formats / "llama_factory" / "talks.json")
    assert [rows.row(index).value["audios"] for index in range(2)] == [
        ["clips/a.wav"],
        ["clips/c.wav"],
    ]


BAD_ARRAYS = {
    "cut in an element": ('[\n{"a": 1},\n{"a":\n 2', r"#1: the file ends .* begins in line 3"),
    "cut between elements": ('[{"a": 1},\n', "cut off after 1 elements, in line 2"),
    "a quote without end": ('[{"a": 1}, {"a": "x}]', "#1: the file ends inside this element"),
    "a comma at the end": ('[{"a": 1},]', "has ',' before the end"),
    "no comma": ('[{"a": 1} {"a": 2}]', "in the place of a comma"),
    "two commas": ('[{"a": 1},, {"a": 2}]', "has ',,' in the place of a comma"),
    "a number": ("[1]", "has '1' before the end"),
    "a string": ('[{"a": 1}, "x"]', "#1: has .* in the place of an object"),
    "a brace too many": ('[{"a": 1}}]', "in the place of an object"),
    "text after the end": ('[{"a": 1}]\nx', "after the end of the array, in line 2"),
    "two arrays": ("[{}][{}]", "after the end of the array"),
    "an object": ('{"rows": [{}]}', "before the array"),
    "nothing": (" \n", "has no array"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_what_is_no_array_of_objects_is_one_line(tmp_path, case):
    text, complaint = BAD_ARRAYS[case]
    path = tmp_path / "d.json"
    path.write_text(text)
    with pytest.raises(DataError, match=complaint) as error:
        JsonArray(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_damaged_element_leaves_the_others(tmp_path):
    path = tmp_path / "d.json"
    path.write_text('[{"a": 1}, {"a" 2}, {"a": 3}]')
    rows = JsonArray(path)
    with pytest.raises(DataError, match=f"^{path}#1: is not JSON .* at column 6"):
        rows.row(1)
    assert rows.row(2).value == {"a": 3}


def test_a_json_file_is_an_array_or_lines(tmp_path):
    for name, text, kind in (
        ("a.json", ' [{"a": 1}]', JsonArray),
        ("b.json", '{"a": 1}\n{"a": 1}\n', JsonlRows),
    ):
        for path, content in (
            (tmp_path / name, text.encode()),
            (tmp_path / f"{name}.gz", gzip.compress(text.encode())),
        ):
            path.write_bytes(content)
            rows = open_json(path)
            assert isinstance(rows, kind)
            assert rows.row(0).value == {"a": 1}
