"""Large memory pages for the arrays of a computation.

XLA takes what a program computes in from the system at every call and gives it back: in pages of 4 KiB, which the system clears
one by one, a training step on a CPU spends about a tenth of its time on that. glibc asks for large pages (2 MiB) where it is
told to before a process starts.
"""

import os
import sys
from collections.abc import Mapping

_VARIABLE, _SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def with_large_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that uses them; what it says of them already is left as it is."""
    tunables = environment.get(_VARIABLE, "")
    if _SETTING in tunables:
        return dict(environment)
    return {**environment, _VARIABLE: ":".join(filter(None, (tunables, f"{_SETTING}=1")))}


def restart_with_large_pages() -> None:
    """Begins this program anew, as the same process, where it was started as `python -m launch.NAME` without them."""
    started_here = sys.argv[:1] == ["-m"]  # what Python writes there until the package of `-m` is imported
    environment = with_large_pages(os.environ)
    if started_here and sys.platform == "linux" and environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
