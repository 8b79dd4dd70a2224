"""A purification that is really killed continues where it was, and ends as if nothing had happened."""

import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

import numpy as np

from jaxpurify.cli.main import main
from jaxpurify.data.sources import load_source

COUNT, BATCH = 128, 16


def test_a_killed_purification_continues_and_gives_the_same_result(here, energy_weights, capsys):
    spec = f"langevin(steps=80, weights='{energy_weights}')"
    command = ["purify", f"digits[:{COUNT}]", "--purifier", spec, "--batch-size", str(BATCH), "--seed", "3"]
    partial = kill_after_batches([*command, "--out", "killed.npz"], here / "killed.npz.partial", 2)
    finished = np.load(partial / "finished.npy")
    assert 2 * BATCH <= finished.sum() < COUNT and not (here / "killed.npz").exists()

    # A finished image that is altered on disk must come out altered: it is not purified again.
    shutil.copytree(partial, here / "altered.npz.partial")
    stored = np.load(here / "altered.npz.partial" / "images.npy", mmap_mode="r+")
    row = int(np.flatnonzero(finished)[0])
    stored[row] = 255 - stored[row]
    stored.flush()

    assert main([*command, "--out", "whole.npz"]) == 0
    whole = load_source("npz:whole.npz")
    capsys.readouterr()
    for name in ("killed", "altered"):
        assert main([*command, "--out", f"{name}.npz"]) == 0
        assert f"({finished.sum()} more in an earlier run)" in capsys.readouterr().out
        assert not (here / f"{name}.npz.partial").exists()
        result = load_source(f"npz:{name}.npz")
        np.testing.assert_array_equal(result.labels, whole.labels)
        different = (result.images != whole.images).any((1, 2, 3))
        assert np.flatnonzero(different).tolist() == ([row] if name == "altered" else [])


def kill_after_batches(command, partial, batches):
    """Starts the command as a process, kills it once so many batches are on disk; the working folder."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "JAX_NUM_CPU_DEVICES": "4"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxpurify", *command], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            started = (partial / "fingerprint.json").exists()
            if started and np.load(partial / "finished.npy").sum() >= batches * BATCH:
                break
            time.sleep(0.005)
        assert process.poll() is None, "the process ended before it could be killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    return partial
