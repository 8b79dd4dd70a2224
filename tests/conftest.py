"""Every test runs under JAX's strict modes, on four simulated devices."""

import os
from pathlib import Path

import jax
import pytest

# Most of the suite's time is compilation, and LLVM's optimisation costs more of it than small programs gain from it.
# XLA's older way of writing fused loops compiles in half the time of the newer one, and a program in one part in two
# thirds of the time of one that is split for threads: the workers of the suite keep all cores busy.
FLAGS = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# A second run finds the programs of the first.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def cifar10(monkeypatch):
    """Points TFDS at the real CIFAR-10, or skips with the reason."""
    folder = os.environ.get("TFDS_DATA_DIR", os.path.abspath("../shared/tfds"))
    if not os.path.isdir(os.path.join(folder, "cifar10")):
        pytest.skip(f"CIFAR-10 is absent: no TFDS directory at {folder}")
    monkeypatch.setenv("TFDS_DATA_DIR", folder)
    return "tfds:cifar10"


@pytest.fixture
def poison_setups():
    """The folder of the poisoning benchmark's published `poison_setups`, or skips with the reason."""
    folder = Path(os.environ.get("POISON_SETUPS_DIR", os.path.abspath("../shared/poison_setups")))
    if not folder.is_dir():
        pytest.skip(f"the benchmark's set-ups are absent: no folder at {folder}")
    return folder
