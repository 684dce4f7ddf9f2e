"""WebDataset shards: members, keys and names of all kinds, and archives cut off anywhere."""

import concurrent.futures
import gzip
import io
import pathlib
import tarfile

import pytest

from stepaudio_jax.data.containers.base import EmbeddedClip
from stepaudio_jax.data.containers.tar import TarShard
from stepaudio_jax.errors import DataError


def write_tar(
    path: pathlib.Path, *members: tuple[str, bytes], format: int = tarfile.PAX_FORMAT
) -> pathlib.Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def place_of(clip: str) -> str:
    return clip.rpartition("#")[2]


def test_the_samples(formats):
    path = formats / "webdataset" / "talks-000000.tar"
    shard = TarShard(path)
    assert [shard.origin(index) for index in range(len(shard))] == [f"{path}#a", f"{path}#b"]
    row = shard.row(1)
    assert (row.default_id, row.folder) == ("b", str(path.parent))
    assert row.value["__key__"] == "b"
    assert row.value["txt"] == "Please close the window."
    assert row.value["json"]["speaker"] == "spk1"
    assert isinstance(row.value["wav"], EmbeddedClip)
    assert row.value["wav"] == f"{path}#b.wav"
    assert shard.read_clip("b.wav") == (formats / "clips" / "b.wav").read_bytes()
    assert shard.blocks() is None


LONG = "x" * 120 + "/" + "y" * 130


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_of_all_kinds(tmp_path, format):
    path = write_tar(
        tmp_path / "t.tar",
        ("./v1.0/a.WAV", b"RIFF0"),
        ("__index__/x.json", b"{"),
        (f"{LONG}.mp3", b"ID3"),
        ("README", b"text"),
        ("v1.0/._a.wav", b"macOS"),
        ("a#1%.wav", b"RIFF1"),
        ("v1.0/a.txt", b"\xef\xbb\xbf Hello. \n"),  # apart from its clip
        ("a#1%.in.flac", b"fLaC"),
        ("é好.opus", b"OggS"),
        ("é好.cls", b"3\n"),
        ("é好.npy", b"\x93NUMPY"),
        format=format,
    )
    shard = TarShard(path)
    rows = {row.value["__key__"]: row.value for row in map(shard.row, range(len(shard)))}
    assert list(rows) == ["v1.0/a", LONG, "a#1%", "é好"]
    assert rows["v1.0/a"]["txt"] == "Hello."
    assert rows["é好"]["cls"] == "3"
    assert rows["é好"]["npy"] == f"{path}#é好.npy"
    assert not isinstance(rows["é好"]["npy"], EmbeddedClip)
    clips = {
        (key, ending): shard.read_clip(place_of(value))
        for key, row in rows.items()
        for ending, value in row.items()
        if isinstance(value, EmbeddedClip)
    }
    assert clips == {
        ("v1.0/a", "wav"): b"RIFF0",
        (LONG, "mp3"): b"ID3",
        ("a#1%", "wav"): b"RIFF1",
        ("a#1%", "in.flac"): b"fLaC",
        ("é好", "opus"): b"OggS",
    }


def test_any_thread_reads_any_member(tmp_path):
    members = [(f"{number:04d}.wav", b"%d" % number * 100) for number in range(200)]
    shard = TarShard(write_tar(tmp_path / "t.tar", *members))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = list(pool.map(shard.read_clip, [name for name, _ in members]))
    assert read == [content for _, content in members]


def test_a_hard_link_is_read_as_its_file(tmp_path):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.wav")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"RIFF"))
        link = tarfile.TarInfo("b.wav")
        link.type, link.linkname = tarfile.LNKTYPE, "a.wav"
        archive.addfile(link)
    assert TarShard(path).read_clip("b.wav") == b"RIFF"


def test_a_symbolic_link_is_refused(tmp_path):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("a.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "b.wav"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"#a\.wav: is a link"):
        TarShard(path)


def test_members_that_cannot_be_read_are_named(tmp_path):
    path = write_tar(
        tmp_path / "t.tar", ("a.json", b"{"), ("b.txt", b"\xff"), ("c.wav", b"RIFF"), ("d.wav", b"")
    )
    shard = TarShard(path)
    for index, complaint in ((0, r"#a\.json: is not JSON"), (1, r"#b\.txt: is not UTF-8")):
        with pytest.raises(DataError, match=complaint) as error:
            shard.row(index)
        assert str(error.value).startswith(str(path))
    for place in ("x.wav", "a", "a.wav", ""):
        with pytest.raises(DataError, match="has no such member"):
            shard.read_clip(place)
    assert shard.read_clip("d.wav") == b""


def test_a_member_twice_is_refused(tmp_path):
    path = write_tar(tmp_path / "t.tar", ("a.wav", b"1"), ("b.wav", b"2"), ("a.WAV", b"3"))
    with pytest.raises(DataError, match=r"#a\.WAV: the archive has this member twice"):
        TarShard(path)


def test_a_cut_anywhere_is_noticed(formats, tmp_path):
    content = (formats / "webdataset" / "talks-000000.tar").read_bytes()
    end = len(content.rstrip(b"\0"))
    path = tmp_path / "t.tar"
    for length in (*range(0, end, 1517), 512, 512 + 37156, 512 + 37376, end):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"cut off|damaged") as error:
            TarShard(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)


def test_other_damage_is_named(formats, tmp_path):
    content = (formats / "webdataset" / "talks-000000.tar").read_bytes()
    broken = content.replace(b"b.wav", b"c.wav", 1)  # the header's checksum is wrong then
    for damaged, complaint in (
        (broken, "is damaged at byte"),
        (content + content, "joined with `cat`"),
        (gzip.compress(content), "is a compressed archive.*unpack it"),
        (b"hello" * 999, "is no tar archive"),
    ):
        path = tmp_path / "t.tar"
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=complaint):
            TarShard(path)
