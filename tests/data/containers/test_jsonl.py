"""JSON Lines: random access, damaged lines, and the same from gzip."""

import concurrent.futures
import gzip
import json
import pathlib
import resource
import signal
import tracemalloc

import pytest

from stepaudio_jax.data.containers.jsonl import JsonlRows
from stepaudio_jax.errors import DataError

TEXTS = ["你好", "é", "plain", "last"]


def lines_of(texts: list[str]) -> bytes:
    """Rows with a byte order mark, CRLF, blank lines and an unended last line around them."""
    first, second, third, last = (
        json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts
    )
    return b"\xef\xbb\xbf%s\r\n\r\n   \n%s\n%s\n\n%s" % (first, second, third, last)


@pytest.mark.parametrize("compress", [False, True])
def test_rows_are_read_in_any_order_with_their_line_numbers(tmp_path, compress):
    path = tmp_path / ("d.jsonl.gz" if compress else "d.jsonl")
    path.write_bytes(gzip.compress(lines_of(TEXTS)) if compress else lines_of(TEXTS))
    rows = JsonlRows(path)
    assert [rows.row(index).value["text"] for index in (3, 0, 2, 1)] == [
        TEXTS[index] for index in (3, 0, 2, 1)
    ]
    assert [rows.origin(index) for index in range(4)] == [f"{path}:{n}" for n in (1, 4, 5, 7)]
    row = rows.row(1)
    assert (row.origin, row.folder, row.default_id) == (f"{path}:4", str(tmp_path), "d:4")
    assert rows.blocks() is None
    with pytest.raises(DataError, match="no clips inside"):
        rows.read_clip("0")


def test_gzip_of_several_members_and_many_threads(tmp_path):
    path = tmp_path / "d.json.gz"
    texts = [f"{number} " + "x" * number for number in range(300)]
    path.write_bytes(
        b"".join(gzip.compress(json.dumps({"text": text}).encode() + b"\n") for text in texts)
    )
    rows = JsonlRows(path)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda index: rows.row(index).value["text"], range(300)))
    assert read == texts


def test_memory_does_not_hold_a_compressed_file(tmp_path):
    path = tmp_path / "d.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for number in range(40):
            file.write(json.dumps({"n": number, "base64": "A" * 1_000_000}).encode() + b"\n")
    tracemalloc.start()
    rows = JsonlRows(path)
    assert rows.row(39).value["n"] == 39
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000  # of 40 MB


BAD_LINES = {
    "not JSON": (b'{"text": [', r"is not JSON \(.* at column 11\)"),
    "not UTF-8": (b'{"text": "\xff"}', r"is not UTF-8 \(byte 10\)"),
    "half a surrogate pair": (b'{"text": "\\ud83d"}', "half of a surrogate pair"),
    "nested without end": (b"[" * 100_000, "nested too deeply"),
    "a number without end": (b"1" * 5_000, "4300 digits"),
    "a key twice": (b'{"a": {"clip": 1, "b": 2, "clip": 3}}', "has the key 'clip' twice in one"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_and_its_neighbours_are_read(tmp_path, case):
    line, complaint = BAD_LINES[case]
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"text": "a"}\n%s\n{"text": "b"}\n' % line)
    rows = JsonlRows(path)
    with pytest.raises(DataError, match=complaint) as error:
        rows.row(1)
    assert str(error.value).startswith(f"{path}:2: ")
    assert "\n" not in str(error.value)
    assert rows.row(2).value == {"text": "b"}


def damaged(content: bytes) -> dict[str, tuple[bytes, str]]:
    middle = len(content) // 2
    return {
        "cut in half": (content[:middle], "cut off or damaged"),
        "cut in its header": (content[:8], "cut off or damaged"),
        "cut in its checksum": (content[:-3], "cut off or damaged"),
        "changed": (content[:middle] + b"\0\0\0\0\0" + content[middle + 5 :], "damaged"),
        "followed by something else": (content + b"x", "is damaged"),
    }


@pytest.mark.parametrize("case", damaged(b""))
def test_damaged_gzip_is_one_line(tmp_path, case):
    text = b"".join(json.dumps({"text": str(hash(str(n)))}).encode() + b"\n" for n in range(999))
    content, complaint = damaged(gzip.compress(text))[case]
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint) as error:
        JsonlRows(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_file_is_indexed_again_after_a_change(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"a": 1}\n' * 2)
    assert len(JsonlRows(path)) == 2
    path.write_text('{"a": 1}\n' * 3)
    assert len(JsonlRows(path)) == 3


def test_what_cannot_be_opened_is_named(tmp_path: pathlib.Path):
    for path, complaint in ((tmp_path / "none.jsonl", "No such file"), (tmp_path, "directory")):
        with pytest.raises(DataError, match=complaint) as error:
            JsonlRows(path)
        assert str(error.value).startswith(f"{path}: cannot be read: ")


def test_a_full_disk_of_temporary_files_is_named(tmp_path):
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 100_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(DataError, match=r"temporary files: File too large; .*TMPDIR"):
            JsonlRows(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(JsonlRows(path)) == 100_000
