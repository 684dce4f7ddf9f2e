"""Sources: what a line means, and the error of a line that means nothing."""

import gzip
import json
import pathlib
import shutil

import grain
import pytest

from stepaudio_jax.config import SourceConfig
from stepaudio_jax.data import Criterion, Record, Source, open_source, open_sources, read_records
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import to_path
from stepaudio_jax.text.dialogue import AudioPart, Message, TextPart

REPLY = {"role": "assistant", "content": "yes"}


def write(folder: pathlib.Path, *lines: object, name: str = "d.jsonl") -> pathlib.Path:
    path = folder / name
    path.write_bytes(
        b"".join(
            (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n"
            for line in lines
        )
    )
    return path


def read_one(folder: pathlib.Path, value: object) -> Record:
    return next(read_records(write(folder, value)))


def messages(*items: object) -> dict[str, object]:
    return {"messages": list(items)}


def test_a_full_record_is_read_key_by_key(tmp_path):
    line = {
        "id": 7,
        "source": "exam",
        "answer": 4.5,
        "reference_reply": "It is 4.5.",
        "rubric": ["names the number", {"criterion": "rambles", "weight": -1}],
        "anything_else": [1, 2],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "tools", "content": "[]"},
            {
                "role": "human",
                "content": [
                    {"type": "text", "text": "Hear "},
                    {
                        "type": "audio",
                        "audio": "clips/a.wav",
                        "transcript": "nine",
                        "attributes": {"gender": "female"},
                    },
                    {"type": "text", "text": "!"},
                ],
            },
            {
                "role": "assistant",
                "content": "Nine.",
                "reasoning_content": "A nine.",
                "loss": False,
            },
            {"role": "tool", "content": "{}"},
            {"role": "user", "content": "Half?", "weight": 0},
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "4."}, {"type": "text", "text": "5"}],
                "weight": 1,
            },
        ],
    }
    clip = AudioPart(str(tmp_path / "clips/a.wav"), "nine", {"gender": "female"})
    assert read_one(tmp_path, line) == Record(
        id="7",
        source="exam",
        origin=f"{tmp_path}/d.jsonl:1",
        reference_reply="It is 4.5.",
        answer="4.5",
        rubric=(Criterion("names the number", 1.0), Criterion("rambles", -1.0)),
        messages=(
            Message("system", (TextPart("Be brief."),)),
            Message("tool_json_schemas", (TextPart("[]"),)),
            Message("user", (TextPart("Hear "), clip, TextPart("!"))),
            Message("assistant", (TextPart("Nine."),), reasoning="A nine.", in_loss=False),
            Message("input", (TextPart("{}"),)),
            Message("user", (TextPart("Half?"),)),
            Message("assistant", (TextPart("4.5"),), in_loss=True),
        ),
    )


@pytest.mark.parametrize(
    ("content", "reasoning", "reply"),
    [
        ("<think>\nA man.\n</think>\nYes.", "A man.", "Yes."),
        ("\n<think>a\n\nb</think>\n\nYes.\n", "a\n\nb", "Yes.\n"),
        ("<think>\n\n</think>\nYes.", "", "Yes."),
        (
            "Say <think>x</think>",
            None,
            "Say <think>x</think>",
        ),  # not at the start: text of the reply
        ("Yes.", None, "Yes."),
    ],
)
def test_inline_reasoning(tmp_path, content, reasoning, reply):
    turn = read_one(tmp_path, messages({"role": "assistant", "content": content})).messages[0]
    assert (turn.reasoning, turn.text) == (reasoning, reply)


def test_absolute_audio_paths_stay(tmp_path):
    record = read_one(
        tmp_path,
        messages({"role": "user", "content": [{"type": "audio", "audio": "/elsewhere/a.wav"}]}),
    )
    assert record.messages[0].audio[0].path == "/elsewhere/a.wav"


def test_random_access_skips_blank_lines_and_keeps_line_numbers(tmp_path):
    """Offsets are in bytes: multi-byte characters, CRLF, blank lines, BOM, an unended last line."""
    texts = ["你好", "é", "plain", "last"]
    lines = [
        json.dumps(messages({"role": "user", "content": text}), ensure_ascii=False).encode()
        for text in texts
    ]
    path = tmp_path / "d.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + lines[0]
        + b"\r\n\r\n   \n"
        + lines[1]
        + b"\n"
        + lines[2]
        + b"\n\n"
        + lines[3]
    )
    file = open_source(path)
    assert [file[index].messages[0].text for index in (3, 0, 2, 1)] == [
        "last",
        "你好",
        "plain",
        "é",
    ]
    assert [file[index].origin.rpartition(":")[2] for index in range(len(file))] == [
        "1",
        "4",
        "5",
        "7",
    ]
    assert [file[index].id for index in range(2)] == ["d:1", "d:4"]
    assert [record.messages[0].text for record in grain.MapDataset.source(file)] == texts


def test_a_file_is_indexed_once_and_again_after_a_change(tmp_path, monkeypatch):
    path = tmp_path / "d.jsonl"
    line = json.dumps(messages({"role": "user", "content": "one"})) + "\n"
    path.write_text(line * 2)
    assert len(open_source(path)) == 2
    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", None)
        assert len(open_source(path)) == 2
    path.write_text(line * 3)
    assert len(open_source(path)) == 3


def test_a_source_is_every_matching_file_in_order_of_name(tmp_path):
    for name in ("b", "a", "c"):
        lines = [
            messages({"role": "user", "content": f"{name}{number}"})
            for number in range({"a": 2, "b": 1, "c": 0}[name])
        ]
        write(tmp_path, *lines, name=f"{name}.jsonl")
    source = Source(SourceConfig(path=f"{tmp_path}/*.jsonl", name="mine"))
    assert [source[index].messages[0].text for index in range(len(source))] == ["a0", "a1", "b0"]
    assert {source[index].source for index in range(3)} == {"mine"}
    brackets = write(tmp_path, messages({"role": "user", "content": "x"}), name="[ab].jsonl")
    assert (
        len(Source(SourceConfig(path=str(brackets)))) == 1
    )  # a file of that very name, not a pattern


def test_an_address_of_the_web_is_no_source():
    for path in ("https://example.org/talks.jsonl", "HTTP://example.org/talks.jsonl"):
        with pytest.raises(DataError, match="is an address of the web; download the file"):
            open_source(path)


def test_a_pattern_in_a_bucket_matches_as_on_a_disk(tmp_path, bucket):
    for name in ("b", "a"):
        path = write(tmp_path, messages({"role": "user", "content": name}), name=f"{name}.jsonl")
        (to_path(bucket) / "data" / path.name).write_bytes(path.read_bytes())
    source = open_source(f"{bucket}/data/[ab]*.jsonl")
    assert [source[index].messages[0].text for index in range(2)] == ["a", "b"]
    assert len(source) == 2
    with pytest.raises(DataError, match="no file matches it"):
        open_source(f"{bucket}/data/none-*.jsonl")


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("missing.jsonl", "no such file"),
        ("none-*.jsonl", "no file matches"),
        ("train-{000..009}.tar", r"no file matches .* braces are not expanded: write \* for"),
        (".", "no records"),
        ("empty.jsonl", "no records"),
    ],
)
def test_a_source_without_records_is_an_error(tmp_path, path, complaint):
    write(tmp_path, b"", b"  ", name="empty.jsonl")
    with pytest.raises(DataError, match=complaint) as error:
        Source(SourceConfig(path=str(tmp_path / path)))
    assert str(tmp_path / path) in str(error.value)


AUDIO = {"type": "audio", "audio": "a.wav"}
BAD_LINES = {
    "not JSON": (b'{"messages": [', "not JSON .*column 15"),
    "not an object": (["x"], "JSON object"),
    "a bare number": (3, "JSON object"),
    "not UTF-8": (b'{"messages": "\xff"}', "UTF-8"),
    "half a surrogate pair": (
        b'{"messages": [{"role": "user", "content": "\\ud83d"}]}',
        "surrogate",
    ),
    "nested without end": (b"[" * 100_000, "nested too deeply"),
    "a number without end": (b"1" * 5_000, "4300 digits"),
    "misspelt messages": ({"mesages": []}, "no form that is known .*mesages"),
    "no messages": (messages(), "at least one message"),
    "messages as text": ({"messages": "hello"}, "at least one message"),
    "a message that is text": (messages("hello"), "message 1 must be an object"),
    "no role": (messages({"content": "x"}), "message 1 has no 'role'"),
    "unknown role": (
        messages(REPLY, {"role": "assistent", "content": "x"}),
        "message 2 .*did you mean 'assistant'",
    ),
    "role of another type": (messages({"role": 5, "content": "x"}), "unknown role 5"),
    "misspelt key": (
        messages({**REPLY, "reasoning_contnet": "x"}),
        "did you mean 'reasoning_content'",
    ),
    "assistant without content": (
        messages({"role": "assistant"}),
        r"message 1 \(assistant\) has no 'content'",
    ),
    "assistant with null content": (
        messages({"role": "assistant", "content": None}),
        "no 'content'",
    ),
    "assistant with empty content": (messages({"role": "assistant", "content": ""}), "empty"),
    "assistant that only thinks": (
        messages({"role": "assistant", "content": "<think>x</think>\n"}),
        "empty reply",
    ),
    "thought without end": (messages({"role": "assistant", "content": "<think>x"}), "never closes"),
    "two thoughts": (
        messages({"role": "assistant", "content": "<think>x</think>y", "reasoning_content": "z"}),
        "keep one",
    ),
    "a thought that is no text": (
        messages({**REPLY, "reasoning_content": ["x"]}),
        "must be a string",
    ),
    "an assistant with audio": (
        messages({"role": "assistant", "content": [AUDIO]}),
        "assistant turn is text",
    ),
    "a user who thinks": (
        messages({"role": "user", "content": "x", "reasoning_content": "y"}),
        "only an assistant",
    ),
    "a user to be learnt": (
        messages({"role": "user", "content": "x", "loss": True}),
        "only an assistant",
    ),
    "a loss that is no boolean": (messages({**REPLY, "loss": "no"}), "true or false"),
    "a weight of a half": (messages({**REPLY, "weight": 0.5}), "0 or 1"),
    "loss against weight": (messages({**REPLY, "loss": True, "weight": 0}), "contradict"),
    "user without content": (messages({"role": "user"}), "no 'content'"),
    "content without parts": (messages({"role": "user", "content": []}), "at least one part"),
    "content as an object": (
        messages({"role": "user", "content": {"text": "x"}}),
        "string or a list",
    ),
    "unknown part type": (
        messages({"role": "user", "content": [{"type": "adio", "audio": "a"}]}),
        "did you mean 'audio'",
    ),
    "a part without its key": (
        messages({"role": "user", "content": [{"type": "audio"}]}),
        "placeholder",
    ),
    "a part with another key": (
        messages({"role": "user", "content": [{"type": "text", "text": "x", "audio": "a"}]}),
        "unknown key",
    ),
    "an empty path": (
        messages({"role": "user", "content": [{"type": "audio", "audio": ""}]}),
        "path of a file",
    ),
    "audio as a number": (
        messages({"role": "user", "content": [{"type": "audio", "audio": 3}]}),
        "must name a clip",
    ),
    "a transcript of words": (
        messages({"role": "user", "content": [{**AUDIO, "transcript": ["a"]}]}),
        "'transcript'",
    ),
    "attributes of numbers": (
        messages({"role": "user", "content": [{**AUDIO, "attributes": {"age": 3}}]}),
        "'attributes'",
    ),
    "a rubric of text": ({**messages(REPLY), "rubric": "good"}, "'rubric' must be"),
    "a scenario of parts": (
        {**messages(REPLY), "scenario": ["a"]},
        "'scenario' must be a string or a number",
    ),
    "a continuation of text": (
        {**messages(REPLY), "reference_continuation": "good"},
        "'reference_continuation' must be a list of messages",
    ),
    "a continuation by the user": (
        {**messages(REPLY), "reference_continuation": [{"role": "user", "content": "a"}]},
        "'reference_continuation', message 1 is of the role 'user', .* write 'assistant'",
    ),
    "a continuation that ends in the user's turn": (
        {**messages(REPLY), "reference_continuation": [REPLY, {"role": "user", "content": "a"}]},
        "'reference_continuation' must end in the assistant's turn",
    ),
    "a continuation with sound": (
        {
            **messages(REPLY),
            "reference_continuation": [
                REPLY,
                {"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]},
                REPLY,
            ],
        },
        "'reference_continuation', message 2 has sound; write what is said as text",
    ),
    "a criterion without text": ({**messages(REPLY), "rubric": [{"weight": 1}]}, "as number 1"),
    "a criterion of infinite weight": (
        b'{"messages": [{"role": "user", "content": "x"}],'
        b' "rubric": [{"criterion": "a", "weight": NaN}]}',
        "finite",
    ),
    "an id that is a list": ({**messages(REPLY), "id": [1]}, "'id' must be"),
    "an answer that is a boolean": ({**messages(REPLY), "answer": True}, "'answer' must be"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_one_line_naming_file_and_line(tmp_path, case):
    bad, complaint = BAD_LINES[case]
    path = write(tmp_path, messages(REPLY), bad, messages(REPLY))
    file = open_source(path)
    with pytest.raises(DataError, match=complaint) as error:
        file[1]
    text = str(error.value)
    assert text.startswith(f"{path}:2: ")
    assert "\n" not in text
    assert len(text) < len(str(path)) + 350
    assert file[2].messages[0].text == "yes"  # the neighbours are readable still


def test_a_record_that_cannot_be_used_keeps_its_id(tmp_path):
    bad = {"messages": [{"role": "usr", "content": "x"}]}
    lines = [
        {**bad, "id": "my-own-77"},
        {**bad, "id": 7},
        {**bad, "id": None},
        {**bad, "id": [1]},
        {**bad, "id": ""},
        bad,
        b"{",
    ]
    file = open_source(write(tmp_path, *lines, messages(REPLY) | {"id": 7}, messages(REPLY)))
    for index in range(len(lines)):
        with pytest.raises(DataError):
            file[index]
    ids = [file.record_id(index) for index in range(len(file))]
    assert ids == ["my-own-77", "7", "d:3", "d:4", "d:5", "d:6", "d:7", "7", "d:9"]
    assert ids[-2:] == [file[index].id for index in (7, 8)]


def sources_of(tmp_path, *configs):
    """The names of sources, and those of their records, of files that are made for them."""
    opened = open_sources(
        [SourceConfig(path=str(tmp_path / path), name=name) for path, name in configs]
    )
    return [
        (source.name, *sorted({source[index].source for index in range(len(source))}))
        for source in opened
    ]


def test_sources_of_one_stem_are_told_apart(tmp_path):
    for folder in ("a", "b", "x/a", "y/a"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("train.jsonl", "test.jsonl", "train.json"):
            write(tmp_path / folder, messages(REPLY), name=name)
    apart = sources_of(
        tmp_path, ("a/train.jsonl", None), ("b/train.jsonl", None), ("b/test.jsonl", None)
    )
    assert apart == [("a/train", "a/train"), ("b/train", "b/train"), ("test", "test")]
    deeper = sources_of(tmp_path, ("x/a/train.jsonl", None), ("y/a/train.jsonl", None))
    assert deeper == [("x/a/train", "x/a/train"), ("y/a/train", "y/a/train")]
    named = sources_of(tmp_path, ("a/test.jsonl", "train"), ("b/train.jsonl", None))
    assert named == [("train", "train"), ("b/train", "b/train")]
    globs = sources_of(tmp_path, ("a/*.jsonl", None), ("b/*.jsonl", None))
    assert globs == [("a/*", "a/test", "a/train"), ("b/*", "b/test", "b/train")]
    endings = sources_of(tmp_path, ("a/train.jsonl", None), ("a/train.json", None))
    assert len({name for name, _ in endings}) == 2
    # What the user names alike, or gives as one source, or twice, is one.
    assert sources_of(tmp_path, ("a/train.jsonl", "s"), ("b/train.jsonl", "s")) == [
        ("s", "s"),
        ("s", "s"),
    ]
    assert sources_of(tmp_path, ("[ab]/train.jsonl", None)) == [("train", "train")]
    assert sources_of(tmp_path, ("a/train.jsonl", None), ("a/train.jsonl", None)) == [
        ("train", "train"),
        ("train", "train"),
    ]


def test_the_name_of_a_source_has_no_ending(tmp_path, formats, monkeypatch):
    line = json.dumps(messages({"role": "user", "content": "x"}, REPLY)).encode()
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(line + b"\nno JSON\n"))
    (tmp_path / "talks.v2").mkdir()
    write(tmp_path / "talks.v2", messages({"role": "user", "content": "x"}, REPLY))
    packed = open_source(tmp_path / "x.jsonl.gz")
    assert (packed.name, packed[0].source, packed[0].id) == ("x", "x", "x:1")
    assert packed.record_id(1) == "x:2"  # which cannot be read
    assert open_source(tmp_path / "talks.v2").name == "talks.v2"
    monkeypatch.chdir(tmp_path / "talks.v2")
    assert open_source("d.jsonl").name == "d"


def test_a_data_set_of_tfds_has_its_own_name(tmp_path, formats, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(formats / "tfds"))
    plain = str(formats / "tfds" / "talks" / "plain" / "1.0.0")
    assert open_source(f"{plain}/").name == "talks"
    for name in ("tfds:talks", "tfds:talks/plain:train", "tfds:talks/plain:1.0.0:train[:2]"):
        source = open_source(name)
        assert (source.name, source[0].source) == ("talks", "talks")
    loud = tmp_path / "talks" / "loud" / "1.0.0"
    shutil.copytree(plain, loud)
    info = json.loads((loud / "dataset_info.json").read_text())
    (loud / "dataset_info.json").write_text(json.dumps(info | {"configName": "loud"}))
    configs = [SourceConfig(path=plain), SourceConfig(path=str(loud))]
    assert [source.name for source in open_sources(configs)] == ["talks/plain", "talks/loud"]
    parts = [SourceConfig(path=f"tfds:talks/plain:train[{part}]") for part in (":2", "2:")]
    first, second = (source.name for source in open_sources(parts))
    assert first != second
    shutil.copytree(plain, tmp_path / "renamed" / "1.0.0")
    assert open_source(tmp_path / "renamed" / "1.0.0").name == "talks"


def test_a_tilde_is_home_in_files_and_clips(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(
        tmp_path,
        messages({"role": "user", "content": [{"type": "audio", "audio": "~/clips/a.wav"}]}, REPLY),
    )
    (record,) = read_records("~/d.jsonl")
    assert record.messages[0].audio[0].path == str(tmp_path / "clips" / "a.wav")
