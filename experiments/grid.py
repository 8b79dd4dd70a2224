"""How the tables of victims are computed: one process a core, rows appended as they come.

Two single-threaded victims beat one that uses two cores: XLA:CPU runs most operations of a small network on one thread.
ResNet-9 of width 16 on two cores of a Xeon (Sapphire Rapids): 820 images/s in one process, 2 × 540 in two.
"""

from collections.abc import Sequence
import os
from pathlib import Path
import signal
import subprocess
import sys
from typing import Protocol

from jaxpurify.cli.memory import keep_memory
from jaxpurify.evaluate.grid import run_scenario
from jaxpurify.evaluate.scenario import Scenario

RESULTS = Path(__file__).parent / "results"


class Grids(Protocol):
    """The config of an experiment.

    Attributes:
      workers: number of processes, and of parts.
      part: None in the process that the user started.
    """

    @property
    def workers(self) -> int: ...

    @property
    def part(self) -> int | None: ...

    def scenarios(self, part: int, parts: int) -> Sequence[Scenario]:
        """That share of every grid."""
        ...


def run_grid(module: str, config: Grids, name: str) -> None:
    """Runs grids with one process a core, or one part of each in this process.

    Args:
      module: the experiment, which is started again as `python -m module … --part i`.
      config: what the experiment's command line says.
      name: of the file under experiments/results/.

    Raises:
      SystemExit: the config asks for what there is not; or a worker failed, the others are still waited for.
    """
    part = config.part or 0
    if config.part is None and config.workers > 1:
        _start_workers(module, config.workers)
        return
    keep_memory()

    def progress(what: str, done: int, total: int) -> None:
        if done in (0, total):
            print(f"[{part}] {what} {done}/{total}", flush=True)

    try:
        scenarios = config.scenarios(part, config.workers)
    except ValueError as error:
        raise SystemExit(f"{module}: {error}") from None
    # One folder for all tables: they share surrogates, clean victims and purified clean images.
    for scenario in scenarios:
        run_scenario(scenario, "runs/grid", results=RESULTS / f"{name}.jsonl", progress=progress)


def _start_workers(module: str, count: int) -> None:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    environment = os.environ | {"XLA_FLAGS": flags.strip(), "JAX_NUM_CPU_DEVICES": "1"}
    # Pages of 2 MB for the arrays: ResNet-9 of width 16 trains 1.05 times as fast on an EPYC.
    environment.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path("runs/compiled").absolute()))
    pins = hasattr(os, "sched_setaffinity")  # Linux
    cores = sorted(os.sched_getaffinity(0)) if pins else []
    processes = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what follows `finally` runs
    try:
        for part in range(count):
            command = [sys.executable, "-m", module, *sys.argv[1:], "--part", str(part)]
            process = subprocess.Popen(command, env=environment)
            if pins:
                os.sched_setaffinity(process.pid, {cores[part % len(cores)]})
            processes.append(process)
        failed = [part for part, process in enumerate(processes) if process.wait()]
    finally:  # workers that outlive this process would compute what its next start computes again
        for process in processes:
            process.terminate()
    if failed:
        raise SystemExit(f"worker {', '.join(map(str, failed))} of {count} failed; run the same command to continue")
