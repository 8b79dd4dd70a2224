"""The length of each example's own gradient: which examples move training the most."""

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np
import optax

from jaxpurify import loop
from jaxpurify.attack.choose import StoredLabels
from jaxpurify.data.image import to_float
from jaxpurify.types import StoredImages


def gradient_norms(
    applies: tuple, members: tuple, images: StoredImages, labels: StoredLabels, *, chunk: int = 16
) -> Float[np.ndarray, "_"]:
    """‖∇_θ CE(f(x), y)‖ of each image, averaged over the members of an ensemble.

    Args:
      applies, members: one callable pytree and one tree of parameters for each member.
      images, labels: stored images uint8 [N, H, W, C] and their labels [N].
      chunk: images at a time; each takes the memory of one copy of the parameters.
    """
    count = -(-len(images) // chunk)
    order = np.arange(count * chunk) % len(images)
    rows = jnp.asarray(images[order].reshape(count, chunk, *images.shape[1:]))
    expected = jnp.asarray(labels[order].reshape(count, chunk), jnp.int32)
    norms = np.zeros(len(images))
    for apply, member in zip(applies, members, strict=True):
        _, found = loop.scan(_norms, (), count, apply, member, rows, expected)
        norms += np.asarray(found, np.float64).reshape(-1)[: len(images)]
    return norms / len(members)


def _norms(state, index, apply, params, images, labels):
    def norm(image, label):
        def loss(params):
            logits = apply(params, to_float(image[None]))
            return optax.softmax_cross_entropy_with_integer_labels(logits, label[None]).mean()

        return optax.tree.norm(jax.grad(loss)(params))

    return state, jax.vmap(norm)(images[index], labels[index])
