"""How much memory purifying a large data set takes.

    python -m experiments.bench.memory

Purifies 50,000 random 32 × 32 × 3 images with one Langevin step on a small energy, resumable, in batches of 128, in
a process of its own, and prints that process's peak resident memory. Exit status 1 if it is 2,000 MB or more.
"""

import resource
import subprocess
import sys
import tempfile

COUNT, LIMIT = 50_000, 2000.0


def main() -> int:
    """Starts the process, prints its peak in MB and compares it with the limit."""
    command = [sys.executable, "-m", "experiments.bench.memory", "--inner"]
    printed = subprocess.run(command, capture_output=True, text=True, check=False)
    if printed.returncode:
        print(f"memory: the process failed: {printed.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return 1
    before, peak = (float(number) for number in printed.stdout.split())
    verdict = "below" if peak < LIMIT else "NOT below"
    print(f"peak resident memory: {peak:.0f} MB, {verdict} {LIMIT:.0f} MB ({before:.0f} MB before purifying)")
    return int(not peak < LIMIT)


def purify_random_images() -> tuple[float, float]:
    """Purifies in this process; returns its peak resident memory before and after, in MB."""
    from flax import nnx
    import jax
    import numpy as np

    from jaxpurify.networks import ConvEnergy, freeze
    from jaxpurify.purify.dataset import purify
    from jaxpurify.purify.langevin import Langevin

    images = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    purifier = Langevin(freeze(ConvEnergy(4, rngs=nnx.Rngs(0))), steps=1)
    before = _peak()
    with tempfile.TemporaryDirectory() as folder:
        purified = purify(purifier, images, key=jax.random.key(0), batch_size=128, directory=f"{folder}/unfinished")
    if (purified == images).all():
        raise ValueError("the images came back unchanged; there was nothing to measure")
    return before, _peak()


def _peak() -> float:
    # Linux counts in kilobytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1000**2 if sys.platform == "darwin" else 1000)


if __name__ == "__main__":
    if sys.argv[1:] == ["--inner"]:
        print(*purify_random_images())
    else:
        sys.exit(main())
