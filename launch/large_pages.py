"""Large memory pages for the arrays of a computation, which a CPU's are taken from again and again.

XLA takes what a program computes in from the system at every call and gives it back: in pages of 4
KiB, which the system clears one by one, a training step on a CPU spends about a tenth of its time
on that. glibc asks for large pages (2 MiB) where it is told to before a process starts. A program
also keeps them, for where memory is in pieces, making large pages of it takes as long; but one that
only generates would lose more by its threads' waiting for the one arena that can keep them.
"""

import glob
import os
import sys
from collections.abc import Mapping

_VARIABLE = "GLIBC_TUNABLES"
_HUGE_PAGES = {"glibc.malloc.hugetlb": 1}
# Arrays come from the heap, whose end is not given back; of glibc's arenas only the main one can
# grow to any size.
_KEEP_FREED = {
    "glibc.malloc.arena_max": 1,
    "glibc.malloc.mmap_max": 0,
    "glibc.malloc.trim_threshold": 2**40,
}
_GENERATION_PROGRAMS = frozenset({"launch.generate", "launch.judge"})
_ACCELERATOR_DEVICES = "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*"


def allocator_environment(environment: Mapping[str, str], *, keep_freed: bool) -> dict[str, str]:
    """The environment of a process that uses them; what it says of them already is left as it is.

    Args:
        environment: what the process would begin with.
        keep_freed: whether freed memory stays with the process; not where an accelerator computes,
            whose arrays are not taken so.
    """
    tunables = environment.get(_VARIABLE, "")
    keep_freed = keep_freed and not any(glob.glob(pattern) for pattern in _ACCELERATOR_DEVICES)
    settings = _HUGE_PAGES | _KEEP_FREED if keep_freed else _HUGE_PAGES
    asked = [f"{name}={value}" for name, value in settings.items() if name not in tunables]
    return {**environment, _VARIABLE: ":".join(filter(None, (tunables, *asked)))}


def restart_with_large_pages() -> None:
    """Begins this program anew, as the same process, where it was started as `python -m launch.NAME` without them."""
    started_here = sys.argv[:1] == [
        "-m"
    ]  # what Python writes there until the package of `-m` is imported
    environment = allocator_environment(
        os.environ, keep_freed=_GENERATION_PROGRAMS.isdisjoint(sys.orig_argv)
    )
    if started_here and sys.platform == "linux" and environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
