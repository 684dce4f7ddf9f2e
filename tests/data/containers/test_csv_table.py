"""CSV and TSV: quotes, separators, line ends, and what is said of rows that do not fit."""

import gzip

import pytest

from stepaudio_jax.data.containers.csv_table import CsvTable
from stepaudio_jax.errors import DataError

TABLES = {
    "quotes and line ends": (
        "a.csv",
        'file,text\r\na.wav,"He said: ""yes,\r\nyes"""\r\n\r\nb.wav,é\r\n',
        [("a.wav", 'He said: "yes,\r\nyes"', 2), ("b.wav", "é", 5)],
    ),
    "a byte order mark": ("a.csv", "\ufefffile,text\na,b", [("a", "b", 2)]),
    "semicolons": ("a.csv", "file;text\na,b;c\n", [("a,b", "c", 2)]),
    "tabs": ("a.tsv", "file\ttext\na\tb, c\n", [("a", "b, c", 2)]),
    "tabs in a .csv": ("a.csv", "file\ttext\na\tb\n", [("a", "b", 2)]),
    "tabs and quotes": ("a.tsv", 'file\ttext\na\t"b\tc"\n', [("a", "b\tc", 2)]),
    "tabs and quotes that are text": (
        "a.tsv",
        'file\ttext\na\t"b" he said\nb\ta 5" nail\nc\t"open\n',
        [("a", '"b" he said', 2), ("b", 'a 5" nail', 3), ("c", '"open', 4)],
    ),
    "blank lines at the beginning": ("a.csv", "\n\nfile,text\na,b\n", [("a", "b", 4)]),
    "empty fields": ("a.csv", "file,text\na,\n,b\n", [("a", "", 2), ("", "b", 3)]),
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("case", TABLES)
def test_rows_are_objects_of_strings(tmp_path, case, compress):
    name, text, expected = TABLES[case]
    path = tmp_path / (f"{name}.gz" if compress else name)
    path.write_bytes(gzip.compress(text.encode()) if compress else text.encode())
    table = CsvTable(path)
    assert len(table) == len(expected)
    for index in reversed(range(len(table))):
        file, said, line = expected[index]
        row = table.row(index)
        assert row.value == {"file": file, "text": said}
        assert row.origin == table.origin(index) == f"{path}:{line}"
        assert (row.folder, row.default_id) == (str(tmp_path), f"a:{line}")


def test_a_column_without_a_name_and_a_long_field(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f",audio\n0,{'A' * 500_000}\n")  # an index of pandas, a clip in base64
    assert CsvTable(path).row(0).value == {"": "0", "audio": "A" * 500_000}


BAD_ROWS = {
    "too few fields": (b"1", "has 1 fields, and the header has 2"),
    "too many fields": (b"1,2,3", "has 3 fields"),
    "text after a quote": (b'"x"y,2', "cannot be read as CSV"),
    "not UTF-8": (b"\xff,2", "is not UTF-8"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_and_its_neighbours_are_read(tmp_path, case):
    line, complaint = BAD_ROWS[case]
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n1,2\n%s\n3,4\n" % line)
    table = CsvTable(path)
    with pytest.raises(DataError, match=complaint) as error:
        table.row(1)
    assert str(error.value).startswith(f"{path}:3: ")
    assert table.row(2).value == {"a": "3", "b": "4"}


BAD_TABLES = {
    "empty": (b"", "is empty"),
    "a quote without end": (b'a,b\n1,2\n3,"4\n5,6\n', ":3: has a quote that is never closed"),
    "a column twice": (b"a,b,a\n", "column 'a' twice"),
    "line ends of a carriage return": (b"a,b\r1,2\r", "carriage return"),
    "a header that is not UTF-8": (b"a,\xff\n", ":1: is not UTF-8"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_one_line(tmp_path, case):
    content, complaint = BAD_TABLES[case]
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint) as error:
        CsvTable(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_the_metadata_of_the_samples(formats):
    table = CsvTable(formats / "audiofolder" / "train" / "metadata.csv")
    assert table.columns == ["file_name", "transcription", "speaker"]
    assert table.row(2).value["transcription"] == "Three plus four."
