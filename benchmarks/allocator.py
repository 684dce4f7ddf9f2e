"""The allocator settings that the Makefile gives to the project's programs on a CPU.

XLA allocates a program's buffers at every call and frees them afterwards. In pages of 4 KiB, which
the kernel clears one by one, a training step on a CPU spends about a tenth of its time on that.
glibc uses pages of 2 MiB where `GLIBC_TUNABLES` asks for them before a process starts.
"""

import glob
from collections.abc import Mapping

_VARIABLE = "GLIBC_TUNABLES"
_HUGE_PAGES = {"glibc.malloc.hugetlb": 1}
# Allocate from the heap and never return its end to the system: in fragmented memory, making large
# pages takes as long as clearing small ones. Only the main arena can grow to any size.
_KEEP_FREED = {
    "glibc.malloc.arena_max": 1,
    "glibc.malloc.mmap_max": 0,
    "glibc.malloc.trim_threshold": 2**40,
}
_ACCELERATOR_DEVICES = "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*"


def allocator_environment(environment: Mapping[str, str], *, keep_freed: bool) -> dict[str, str]:
    """Returns an environment with `GLIBC_TUNABLES` extended; settings already in it are kept.

    Args:
        environment: the environment to extend.
        keep_freed: whether the process keeps freed memory. Ignored on machines with an
            accelerator, whose arrays are not allocated by glibc. Programs that only generate lose
            more by their threads' waiting for the one arena than they gain.
    """
    tunables = environment.get(_VARIABLE, "")
    keep_freed = keep_freed and not any(glob.glob(pattern) for pattern in _ACCELERATOR_DEVICES)
    settings = _HUGE_PAGES | _KEEP_FREED if keep_freed else _HUGE_PAGES
    added = [f"{name}={value}" for name, value in settings.items() if name not in tunables]
    return {**environment, _VARIABLE: ":".join(filter(None, (tunables, *added)))}
