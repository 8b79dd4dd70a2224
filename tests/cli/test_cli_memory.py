"""Freed memory stays with the process where the C library can do that."""

import json
import subprocess
import sys

import pytest

from jaxpurify.cli import memory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can be told to keep memory")

BLOCKS = """
import resource, sys, threading
import numpy as np
from jaxpurify.cli.memory import keep_memory
devices, size = int(sys.argv[1]), int(sys.argv[2])
if devices:
    assert keep_memory(devices)
faults = []
def take_blocks():
    for turn in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = np.full(size << 20, 1, np.uint8)
        del block
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=take_blocks)
thread.start()
thread.join()
print(faults[-1])
"""

RESTART = """
import json, os, sys
from jaxpurify.cli import memory
memory._can_be_large = lambda: True
before = os.environ.get("GLIBC_TUNABLES")
memory.restart_with_large_heaps()
print(json.dumps([before, os.getpid(), sys.argv[1:], sys.flags.dev_mode]))
"""


def faults_of_the_third_block(devices, size):
    command = [sys.executable, "-c", BLOCKS, str(devices), str(size)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@linux
def test_a_block_that_was_freed_is_used_again_without_page_faults():
    # 64 MiB are 16,384 pages, or 32 where the system has huge ones at hand.
    assert faults_of_the_third_block(1, 64) < 16 < faults_of_the_third_block(0, 64)


@linux
def test_threads_of_several_devices_keep_blocks_of_their_own():
    assert faults_of_the_third_block(2, 40) < 16 < faults_of_the_third_block(0, 40)


@pytest.mark.parametrize("before", [None, "glibc.malloc.perturb=1"])
def test_the_process_starts_anew_once_with_its_arguments(monkeypatch, before):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if before:
        monkeypatch.setenv("GLIBC_TUNABLES", before)
    command = [sys.executable, "-X", "dev", "-c", RESTART, "one", "two words"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        tunables, identity, arguments, development = json.loads(process.communicate()[0])
    assert tunables == ":".join(filter(None, (before, "glibc.malloc.hugetlb=1073741824")))
    assert identity == process.pid and arguments == ["one", "two words"] and development


def test_a_choice_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    monkeypatch.setattr(memory, "_can_be_large", lambda: True)
    monkeypatch.setattr(memory.os, "execv", lambda *command: pytest.fail(f"started {command}"))
    memory.restart_with_large_heaps()
    assert memory.os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=0"


@pytest.mark.parametrize(
    ("known", "library", "can"),
    [(True, "glibc 2.36", True), (True, "glibc 2.9", False), (True, None, False), (False, "glibc 2.36", False)],
)
def test_heaps_are_asked_for_where_there_are_pages_of_the_size(monkeypatch, tmp_path, known, library, can):
    monkeypatch.setattr(memory, "_SYSTEM_PAGES", tmp_path if known else tmp_path / "absent")
    monkeypatch.setattr(memory.os, "confstr_names", {"CS_GNU_LIBC_VERSION": 2})
    monkeypatch.setattr(memory.os, "confstr", lambda name: library)
    assert memory._can_be_large() is can


@linux
@pytest.mark.skipif(not memory._can_be_large(), reason="this system has no huge pages of 1 GB")
def test_no_large_heaps_where_addresses_are_limited():
    program = "from jaxpurify.cli import memory; print(memory._can_be_large())"
    command = ["sh", "-c", f'ulimit -v 8000000; "{sys.executable}" -c "{program}"']
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


@linux
@pytest.mark.skipif(not memory._can_be_large(), reason="this system has no huge pages of 1 GB")
def test_large_blocks_of_a_thread_stay_in_large_heaps(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert faults_of_the_third_block(2, 100) > 16
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1073741824")
    assert faults_of_the_third_block(2, 100) < 16
    assert faults_of_the_third_block(1, 100) < 16


def test_nothing_happens_elsewhere(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_memory() is False
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())  # a C library without mallopt
    assert memory.keep_memory() is False
