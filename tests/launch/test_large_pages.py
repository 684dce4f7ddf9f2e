"""Programs are begun anew with large pages, once, and as they were called."""

import glob
import os
import subprocess
import sys

import pytest

from launch.large_pages import allocator_environment, restart_with_large_pages
from tests.end_to_end.runs import ROOT

KEPT = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"
LARGE = "glibc.malloc.hugetlb=1"
TUNED = f"{LARGE}:glibc.malloc.arena_max=1:{KEPT}"


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch):
    monkeypatch.setattr(glob, "glob", lambda pattern: [])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, TUNED),
        ("", TUNED),
        ("glibc.malloc.arena_max=4", f"glibc.malloc.arena_max=4:glibc.malloc.hugetlb=1:{KEPT}"),
        (TUNED.replace("hugetlb=1", "hugetlb=0"), TUNED.replace("hugetlb=1", "hugetlb=0")),
    ],
)
def test_what_is_said_already_is_left_as_it_is(before, after):
    environment = {"HOME": "here"} | ({} if before is None else {"GLIBC_TUNABLES": before})
    assert allocator_environment(environment, keep_freed=True) == {
        "HOME": "here",
        "GLIBC_TUNABLES": after,
    }


def test_memory_is_not_kept_where_an_accelerator_computes(monkeypatch):
    monkeypatch.setattr(
        glob, "glob", lambda pattern: ["/dev/accel0"] if pattern == "/dev/accel*" else []
    )
    assert allocator_environment({}, keep_freed=True) == {"GLIBC_TUNABLES": LARGE}


@pytest.fixture
def begun(monkeypatch):
    """Calls of os.execve."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "launch.train", "--config=a b.py"])
    return calls


def test_a_program_is_begun_anew_with_its_arguments(begun, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-m", "--config=a b.py"])
    restart_with_large_pages()
    [(program, arguments, environment)] = begun
    assert (program, arguments) == (
        sys.executable,
        [sys.executable, "-m", "launch.train", "--config=a b.py"],
    )
    assert environment == {**os.environ, "GLIBC_TUNABLES": TUNED}
    monkeypatch.setenv("GLIBC_TUNABLES", TUNED)
    restart_with_large_pages()
    assert len(begun) == 1


def test_a_program_that_only_generates_keeps_no_memory(begun, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "launch.generate", "in.jsonl"])
    restart_with_large_pages()
    [(_, _, environment)] = begun
    assert environment["GLIBC_TUNABLES"] == LARGE


def test_whoever_imports_the_package_goes_on(begun, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest"])
    restart_with_large_pages()
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(sys, "platform", "darwin")
    restart_with_large_pages()
    assert begun == []


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_real_program_has_them():
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-X", "importtime", "-m", "launch.report", "--help"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0
    assert "usage" in ended.stdout
    assert ended.stderr.count("import time: self [us]") == 2  # once of each beginning
