"""Freed memory stays with the process where the C library can do that."""

import subprocess
import sys

import pytest

from jaxpurify.cli import memory

PROGRAM = """
import resource, sys
import numpy as np
from jaxpurify.cli.memory import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
for turn in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = np.full(64 << 20, 1, np.uint8)
    del block
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def faults_of_the_third_block(what):
    finished = subprocess.run([sys.executable, "-c", PROGRAM, what], capture_output=True, text=True, check=True)
    return int(finished.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can be told to keep memory")
def test_a_block_that_was_freed_is_used_again_without_page_faults():
    # 64 MiB are 16,384 pages, or 32 where the system has huge ones at hand.
    assert faults_of_the_third_block("keep") < 16 < faults_of_the_third_block("return")


def test_nothing_happens_elsewhere(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_memory() is False
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())  # a C library without mallopt
    assert memory.keep_memory() is False
