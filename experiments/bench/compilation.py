"""How much of the demo's wall time is compilation, with an empty compilation cache.

    python -m experiments.bench.compilation

Prints the seconds that JAX spent on tracing, lowering and compiling (events of `jax.monitoring`) and those of the whole
demo. Tracing inside of tracing counts twice, so the share is an upper bound. Appends a row to runs/bench/results.jsonl.
"""

import collections
import os
from pathlib import Path
import tempfile
import time

import jax

from jaxpurify import records
from jaxpurify.cli.main import main as command

EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling",
}


def main() -> None:
    """Runs the demo in this process."""
    seconds: dict[str, float] = collections.defaultdict(float)
    programs: collections.Counter[str] = collections.Counter()

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event in EVENTS:
            seconds[EVENTS[event]] += duration_secs
            programs[EVENTS[event]] += 1

    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)  # as the command line sets it
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.monitoring.register_event_duration_secs_listener(listen)
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")
        start = time.perf_counter()
        command(["demo", "--out", f"{folder}/demo"])
        wall = time.perf_counter() - start
    share = sum(seconds.values()) / wall
    parts = ", ".join(f"{name} {seconds[name]:.1f} s ({programs[name]})" for name in EVENTS.values())
    print(f"demo {wall:.1f} s; {parts}: {share:.2f} of it")
    row = {"work": "compilation in the demo", "row": "compilation", "unit": "share of wall time", "ours": share}
    row |= {"wall": wall, "seconds": dict(seconds), "programs": dict(programs), "device": records.device()}
    records.append_row(Path("runs/bench/results.jsonl"), row | {"git": records.git(), "versions": records.versions()})


if __name__ == "__main__":
    main()
