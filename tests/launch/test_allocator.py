"""The allocator settings of the Makefile, and that importing `launch` starts no process anew."""

import glob
import re
import subprocess
import sys

import pytest

from benchmarks.allocator import allocator_environment
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
def test_settings_of_the_user_are_kept(before, after):
    environment = {"HOME": "here"} | ({} if before is None else {"GLIBC_TUNABLES": before})
    assert allocator_environment(environment, keep_freed=True) == {
        "HOME": "here",
        "GLIBC_TUNABLES": after,
    }


def test_freed_memory_is_returned_where_an_accelerator_computes(monkeypatch):
    monkeypatch.setattr(
        glob, "glob", lambda pattern: ["/dev/accel0"] if pattern == "/dev/accel*" else []
    )
    assert allocator_environment({}, keep_freed=True) == {"GLIBC_TUNABLES": LARGE}


def test_the_makefile_and_the_benchmarks_use_the_same_settings():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    values = dict(re.findall(r"^(HUGE_PAGES|KEEP_FREED) := (?:.*,)?(glibc[^)\n]+)", makefile, re.M))
    assert f"{values['HUGE_PAGES']}:{values['KEEP_FREED']}" == TUNED


def test_importing_launch_does_not_restart_the_interpreter():
    command = [sys.executable, "-X", "importtime", "-m", "launch.report", "--help"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0
    assert "usage" in ended.stdout
    assert ended.stderr.count("import time: self [us]") == 1  # printed once per interpreter
