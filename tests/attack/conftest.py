"""Scanned digits and a small classifier trained on them: a real surrogate in a second."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jaxpurify import loop
from jaxpurify.purify.adaptive import Adaptive
from jaxpurify.purify.langevin import Langevin


@pytest.fixture(scope="session")
def digits():
    """Stored digits, uint8 [1797, 8, 8, 1], and their labels."""
    bunch = load_digits()
    return np.rint(bunch.images[..., None] / 16 * 255).astype(np.uint8), bunch.target.astype(np.int32)


def two_layers(params, images):
    hidden = jnp.tanh(images.reshape(len(images), -1) @ params["first"] + params["shift"][None])
    return hidden @ params["second"]


@pytest.fixture(scope="session")
def surrogate(digits):
    """`(apply, params)` of a two-layer network with above 95 % accuracy on the first thousand digits."""
    images, labels = jnp.asarray(digits[0][:1000], jnp.float32) / 255, jnp.asarray(digits[1][:1000])
    first, second = jax.random.split(jax.random.key(0))
    params = {
        "first": jax.random.normal(first, (64, 32)) / 8,
        "shift": jnp.zeros(32),
        "second": jax.random.normal(second, (32, 10)) / 6,
    }
    optimizer = optax.adam(0.02)

    @jax.jit
    def update(params, moments):
        def objective(params):
            logits = two_layers(params, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, moments = optimizer.update(jax.grad(objective)(params), moments, params)
        return optax.apply_updates(params, updates), moments

    moments = optimizer.init(params)
    for _ in range(150):
        params, moments = update(params, moments)
    accuracy = (two_layers(params, images).argmax(-1) == labels).mean()
    assert accuracy > 0.95
    return two_layers, params


@pytest.fixture
def long_chain(monkeypatch):
    """A chain of twelve steps of which two have a gradient, and the list of whether each loop since ran in Python."""

    def energy(images):
        return 50 * jnp.square(images - 0.5).sum((1, 2, 3))

    looped, runs_in_python = [], loop.runs_in_python
    monkeypatch.setattr(loop, "runs_in_python", lambda *trees: looped.append(runs_in_python(*trees)) or looped[-1])
    chain = Adaptive(Langevin(energy, 0.02, 1e-2, steps=12), "truncated", 2)
    return chain, looped
