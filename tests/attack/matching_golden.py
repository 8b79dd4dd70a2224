"""The recipe of the golden numbers of gradient matching: one generator of arrays, and the small network."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "matching.json").read_text())


def wave(shape, shift):
    """sin(1.3 i + shift) (1 + 0.1 cos(0.37 i)) over the flat index i, float64."""
    index = np.arange(np.prod(shape))
    return (np.sin(1.3 * index + shift) * (1 + 0.1 * np.cos(0.37 * index))).reshape(shape)


def gradient_trees():
    """A poison gradient and a target gradient of 22 tensors each."""
    target, poison = [], []
    for k in range(22):
        shape = (3 + k % 4, 2 + k % 3) if k % 2 == 0 else (4 + k % 5,)
        t = (1 + 0.2 * k) * wave(shape, 0.1 * k)
        target.append(jnp.asarray(t, jnp.float32))
        poison.append(jnp.asarray(wave(shape, 0.1 * k + 0.8) + 0.3 * t, jnp.float32))
    return poison, target


def network(params, images):
    """6 → 5 tanh → 3, weights (outputs, inputs), on images [B, 1, 1, 6]."""
    hidden = jnp.tanh(images.reshape(len(images), -1) @ params["W1"].T + params["b1"][None])
    return hidden @ params["W2"].T + params["b2"][None]


def parameters():
    arrays = {
        "W1": 0.5 * wave((5, 6), 0.2),
        "W2": 0.7 * wave((3, 5), 0.6),
        "b1": 0.1 * wave((5,), 0.4),
        "b2": 0.1 * wave((3,), 0.9),
    }
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), arrays)


def rows(shape, shift):
    """Rows of the small network as images [B, 1, 1, 6]."""
    return jnp.asarray(wave(shape, shift).reshape(shape[0], 1, 1, shape[1]), jnp.float32)


POISON_LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 0], np.int32)
