"""How the process keeps memory: large arrays are not handed back to the system and taken from it anew at every step.

XLA:CPU takes one block for the temporaries of every call and many small ones within it. Left alone, glibc maps every
large block anew, and the system fills it with zeros page by page: 24,500 page faults and 40 of 260 ms in a training
step of ResNet-9 at batch 128 on one core.
"""

import ctypes
import os
from pathlib import Path
import sys

# The names and numbers of glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_NEVER = -1  # other numbers are thresholds, and two devices that train ResNet-18 free more than 2³¹ bytes at a time
_HEAP_BYTES = 64 << 20  # what a thread's heap holds at most, unless glibc is asked for huge pages of a size
_PAGE_BYTES = 1 << 30
_PAGES = "glibc.malloc.hugetlb"
_SYSTEM_PAGES = Path(f"/sys/kernel/mm/hugepages/hugepages-{_PAGE_BYTES >> 10}kB")


def keep_memory(devices: int = 1) -> bool:
    """Tells glibc's allocator to keep freed memory for the next allocation; True where it agreed.

    To be called before JAX starts its threads. Does nothing where the C library is not glibc.

    Threads have heaps of their own, for at the lock of a common one those of two devices wait for each other 2,000
    times in a training step: compiling leaves it tens of thousands of free pieces, which every allocation searches.
    (ResNet-9 on two cores of an EPYC: 819 → 1,196 images/s.) Blocks above 64 MB do not fit into these heaps and are
    still mapped anew, unless `restart_with_large_heaps` came first.

    Args:
      devices: how many CPU devices JAX has. A single one has little to wait for, and keeps its large blocks in one
        common heap where the others are small.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    common = devices == 1 and f"{_PAGES}={_PAGE_BYTES}" not in os.environ.get("GLIBC_TUNABLES", "")
    # A heap goes back to the system once all of it is free, unless the padding asks for more than it holds.
    heaps = (_ARENA_MAX, 1) if common else (_TOP_PAD, _HEAP_BYTES)
    return all([mallopt(*heaps), mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, _NEVER)])


def restart_with_large_heaps() -> None:
    """Starts this process anew with room for 4 GB in every thread's heap, where that can be had and is not asked for.

    glibc makes a heap four huge pages large, of the size that `GLIBC_TUNABLES` names when a process starts: 1 GB here.
    Where no such page is free, and none is unless somebody has reserved it, the heap consists of ordinary ones. Returns
    where the process has chosen already, and where the system or the C library cannot do it.

    On two cores of an EPYC, taking turns: HLB-S 228 → 287 images/s, ResNet-18 61 → 62.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if _PAGES in tunables or not sys.executable or not _can_be_large():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{_PAGES}={_PAGE_BYTES}")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _can_be_large() -> bool:
    """Whether the system knows of such pages, this C library lets the size be chosen (glibc since 2.35), and addresses
    are free: under a limit (`ulimit -v`) heaps of this size fail one after the other, and compiling is slow."""
    if not _SYSTEM_PAGES.exists() or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return False
    import resource  # there is none on Windows

    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return False
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)
