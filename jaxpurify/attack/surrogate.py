"""How attacks see a surrogate: any callable `(params, images) -> logits`, passed through `jit` as data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpurify.types import Images, PyTree

Apply = Callable[[PyTree, Any], Any]


def class_count(apply: PyTree, params: PyTree, shape: tuple[int, ...]) -> int:
    """How many logits the surrogate has for one image of `shape` (H, W, C); nothing is computed.

    Raises:
      ValueError: the surrogate's answer is not one vector of logits an image.
    """
    logits = compiled_logits.eval_shape(apply, params, jax.ShapeDtypeStruct((1, *shape), "float32"))
    if not hasattr(logits, "shape") or len(logits.shape) != 2 or logits.shape[0] != 1:
        raise ValueError(f"the surrogate answers with {logits}; it must give logits [B, classes]")
    return logits.shape[1]


@jax.jit
def compiled_logits(apply: PyTree, params: PyTree, images: Images) -> Any:
    """`apply(params, images)`, one program also in a step that is not compiled as a whole (`loop.has_loops`)."""
    return apply(params, images)


def triggered(images: Images, delta: Float[Array, "height width channels"]) -> Images:
    """clip(x + delta, 0, 1) with one perturbation for all images."""
    return jnp.clip(images + delta[None], 0.0, 1.0)
