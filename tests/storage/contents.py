"""What lies in place of the files that people want: as programs and servers write it."""

import gzip
import io
import tarfile
import zipfile

LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 497774208\n"
)
HTML = (
    "<!DOCTYPE html>\n<html><head><title>Sign in &amp; out – Hub</title></head>"
    "<body>x</body></html>"
).encode()
XML = (
    b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message>'
    b"<RequestId>1</RequestId></Error>"
)


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "x" * 100)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("a")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"abc"))
    return file.getvalue()


# Name: the content, and what is said of it whatever the file is wanted for.
CONTENTS = {
    "lfs": (
        LFS,
        r"is a Git LFS pointer, and not the file itself \(of 497,774,208 bytes\);"
        r" run `git lfs install && git lfs pull`",
    ),
    "lfs of Windows": (b"\xef\xbb\xbf" + LFS.replace(b"\n", b"\r\n"), "is a Git LFS pointer"),
    "git-annex": (
        b"/annex/objects/SHA256E-s12--abc.wav\n",
        "is a pointer of git-annex.*run `git annex get`",
    ),
    "link as text": (
        b"../../blobs/0123456789abcdef",
        "is a link of the Hub's cache written as text",
    ),
    "html": (
        HTML,
        r"is a web page \(HTML\) \('Sign in & out – Hub'\) and not the file;"
        r" download the file itself",
    ),
    "html in UTF-16": (HTML.decode().encode("utf-16"), r"is a web page \(HTML\)"),
    "html with a comment": (b"\n\n<!-- generated -->\n<html lang='en'>", r"is a web page \(HTML\)"),
    "xml": (XML, "holds a server's message in XML and not the file: 'AccessDenied: Access Denied'"),
    "json": (
        b'{"error": "Repository not found"}',
        "holds a server's message in JSON and not the file: 'Repository not found'",
    ),
    "json of an API": (
        b'{"message": "Bad credentials", "status": "401"}',
        "holds a server's message.*: 'Bad credentials'",
    ),
    "text": (b"Invalid username or password.", r"holds text \('Invalid username or password.'\)"),
    "zip": (zipped("a.txt"), "is a zip archive; unpack it"),
    "gzip": (gzip.compress(b"x"), r"is compressed \(gzip\); unpack it"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00", r"is compressed \(zstd\)"),
    "tar": (tarred(), "is a tar archive; unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", r"is compressed \(7z\)"),
    "empty": (b"", r"is empty \(0 bytes\)"),
    "zeros": (bytes(5000), "begins with 5000 zero bytes: a download that did not finish"),
    "parquet": (b"PAR1\x15\x04\x15" + bytes(50) + b"PAR1", "is a Parquet table"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(100), "is a GGUF file of llama.cpp"),
    "torch": (zipped("archive/data.pkl"), "is a PyTorch pickle"),
    "npz": (zipped("arr_0.npy"), r"is an archive of NumPy arrays \(npz\)"),
    "pickle": (b"\x80\x02}q\x00X\x05\x00", "is a pickle"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(9), "is an HDF5 file"),
    "of macOS": (
        b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(50),
        "is the file of attributes that macOS puts beside a file",
    ),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(9), "is a PNG image"),
}
FFMPEG = "convert it to WAV, FLAC, MP3 or OGG, for example with `ffmpeg -i OLD NEW.wav`"
SOUNDS = {
    "m4a": (
        b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom" + bytes(30),
        r"MPEG-4 file \(M4A, MP4, MOV or 3GP; brand 'M4A'\)",
    ),
    "3gp": (b"\0\0\0\x18ftyp3gp4\0\0\0\0" + bytes(30), r"brand '3gp4'"),
    "webm": (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\1webm" + bytes(40), "WebM or Matroska"),
    "amr": (b"#!AMR\n\x3c\x08" + bytes(40), "AMR recording"),
    "amr wide": (b"#!AMR-WB\n\x3c\x08" + bytes(40), "AMR recording"),
    "silk": (b"\x02#!SILK_V3" + bytes(40), "SILK recording"),
    "aac": (b"\xff\xf1\x50\x80\x2e\x7f\xfc" + bytes(range(256)) * 4, "AAC stream"),
    "wma": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(30), r"Windows Media file \(WMA"),
    "ac3": (b"\x0b\x77\0\0\x50\x40" + bytes(40), "AC-3 stream"),
    "avi": (b"RIFF\x24\0\0\0AVI LIST" + bytes(30), "AVI video"),
}
