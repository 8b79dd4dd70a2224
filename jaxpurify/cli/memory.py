"""How the process takes memory from the system: huge pages, and large arrays that are not handed back at every step."""

import ctypes
import os
from pathlib import Path
import sys

# The names and numbers of glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_NEVER = -1  # other numbers are thresholds, and two devices that train ResNet-18 free more than 2³¹ bytes at a time
_HEAP_BYTES = 64 << 20  # what an arena beside the first maps at a time
_HUGE_PAGES = "glibc.malloc.hugetlb"
_SYSTEM_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def keep_memory(devices: int = 1) -> bool:
    """Tells glibc's allocator to keep freed memory for the next allocation; True where it agreed.

    To be called before JAX starts its threads. XLA:CPU takes one block for the temporaries of every call. glibc maps
    blocks of this size anew each time, and the system fills them with zeros page by page: 24,500 page faults and 40 of
    260 ms in a training step of ResNet-9 at batch 128 on one core. Does nothing where the C library is not glibc.

    Args:
      devices: how many CPU devices JAX has. The threads of a single one share one arena, for all others map blocks
        above 64 MB anew whatever the settings say. Those of several would wait for each other at its lock 2,000 times
        in a training step, for compiling leaves it tens of thousands of free pieces that every allocation searches:
        each thread has its own (ResNet-9 on two cores of an EPYC: 819 → 1,196 images/s, gradient matching 421 → 576
        poisons/s with huge pages).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # An arena gives back what it has mapped once that is free, unless the padding asks for more than it holds.
    arenas = (_ARENA_MAX, 1) if devices == 1 else (_TOP_PAD, _HEAP_BYTES)
    return all([mallopt(*arenas), mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, _NEVER)])


def restart_with_huge_pages() -> None:
    """Starts this process anew with glibc's memory in pages of 2 MB, where that is on offer and not yet asked for.

    glibc reads `GLIBC_TUNABLES` when a process starts, and nothing else turns them on. Returns where the process has
    chosen already, where the system gives huge pages to all or to none, and where the C library does not know of them.
    With two devices of an EPYC: ResNet-9 1,196 → 1,279 images/s, HLB-S 236 → 314.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if _HUGE_PAGES in tunables or not sys.executable or not _offered():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{_HUGE_PAGES}=1")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _offered() -> bool:
    """Whether the system gives huge pages to those that ask, and this C library can ask (glibc since 2.35)."""
    if not _SYSTEM_HUGE_PAGES.exists() or "[madvise]" not in _SYSTEM_HUGE_PAGES.read_text():
        return False
    if "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return False
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)
