"""One process a core for grids of many small trainings: two single-threaded victims beat one that uses two cores.

XLA:CPU runs most operations of a small network on one thread, so that a training keeps about 1.5 of two cores busy;
two trainings side by side keep both.
"""

from collections.abc import Sequence
import os
import subprocess
import sys


def run_workers(module: str, arguments: Sequence[str], count: int) -> None:
    """Runs `python -m module arguments --part i --parts count` for every i at once, each on a core of its own.

    Raises:
      SystemExit: a worker failed; the others are still waited for.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    environment = os.environ | {"XLA_FLAGS": flags.strip(), "JAX_NUM_CPU_DEVICES": "1"}
    cores = sorted(os.sched_getaffinity(0))
    processes = []
    for part in range(count):
        command = [sys.executable, "-m", module, *arguments, "--part", str(part), "--parts", str(count)]
        process = subprocess.Popen(command, env=environment)
        os.sched_setaffinity(process.pid, {cores[part % len(cores)]})
        processes.append(process)
    failed = [part for part, process in enumerate(processes) if process.wait()]
    if failed:
        raise SystemExit(f"worker {', '.join(map(str, failed))} of {count} failed; run the same command to continue")
