"""A training process that is killed is continued by another one, bit for bit."""

import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxpurify import checkpoint
from jaxpurify.generate import run
from jaxpurify.generate.diffusion import DiffusionRecipe, train_diffusion
from jaxpurify.generate.energy import EnergyRecipe, train_energy
from tests.generate.conftest import SmallEnergy, SmallNoise

KEY = jax.random.key(8)
RECIPES = {
    "energy": EnergyRecipe(
        steps=120, batch_size=16, learning_rate=1e-3, langevin_steps=3, step_size=0.01, temperature=0.01, bank_size=40
    ),
    "diffusion": DiffusionRecipe(steps=120, batch_size=16, learning_rate=1e-3, max_timestep=50, ema_decay=0.9),
}


def train(kind, images, directory, progress=None):
    options = {"recipe": RECIPES[kind], "interval": 10, "directory": directory, "progress": progress}
    if kind == "energy":
        return train_energy(SmallEnergy(), images, KEY, **options)
    return train_diffusion(SmallNoise(), images, KEY, **options)


def kill_soon_after_step_50(done, total, metrics):
    """The killing comes from outside of Python, while steps or a checkpoint are under way."""
    if done == 50:
        subprocess.Popen(["sh", "-c", f"sleep 0.1; kill -9 {os.getpid()}"])


if __name__ == "__main__":
    run.PAUSE = 0.0  # a checkpoint after every interval
    train(sys.argv[1], np.load(sys.argv[2]), sys.argv[3], kill_soon_after_step_50)


@pytest.mark.parametrize("kind", RECIPES)
def test_a_killed_training_continues_bit_for_bit(kind, digits, tmp_path):
    np.save(tmp_path / "digits.npy", digits)
    directory = tmp_path / "checkpoints"
    arguments = [sys.executable, __file__, kind, str(tmp_path / "digits.npy"), str(directory)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    killed = subprocess.run(arguments, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    last = checkpoint.steps(directory)[-1]
    assert 50 <= last < 120
    steps = []
    continued, resumed = train(kind, digits, directory, lambda done, total, metrics: steps.append(done))
    assert steps == list(range(last + 10, 121, 10))
    whole, history = train(kind, digits, None)
    assert len(history["loss"]) == 12
    for name, values in history.items():  # the intervals before the kill included
        np.testing.assert_allclose(resumed[name], values, rtol=1e-6)
    with pytest.raises(ValueError, match="holds checkpoints of another images; remove it or use another"):
        train(kind, digits[1:], directory)
    for one, other in zip(jax.tree.leaves(continued), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)
