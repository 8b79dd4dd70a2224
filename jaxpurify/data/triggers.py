"""Triggers: callables on images in [0, 1] that are pytrees of their arrays, so that poison files can hold them."""

import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jaxpurify.struct import struct
from jaxpurify.types import Images


@struct
class AdditiveTrigger:
    """clip(x + scale · delta, 0, 1) for images x in [0, 1]; `delta` [H, W, C] in the same units.

    Adversarial, sinusoidal and Narcissus triggers (arXiv:2204.05255); `scale` above 1 is the amplified trigger at
    test time.
    """

    delta: Float[Array | np.ndarray, "height width channels"]
    scale: float | Float[Array | np.ndarray, ""] = 1.0

    def __call__(self, images: Images) -> Images:
        return jnp.clip(images + self.scale * jnp.asarray(self.delta)[None], 0.0, 1.0)

    def scaled(self, scale: float) -> "AdditiveTrigger":
        """The same trigger, `scale` times as strong as it is now."""
        return AdditiveTrigger(self.delta, self.scale * scale)


@struct
class PatchTrigger:
    """(1 - mask) · x + mask · pattern (BadNets, arXiv:1708.06733, with a 0/1 mask; blended with a fractional one).

    `pattern` [H, W, C] and `mask` [H, W, 1], both in [0, 1].
    """

    pattern: Float[Array | np.ndarray, "height width channels"]
    mask: Float[Array | np.ndarray, "height width 1"]

    def __call__(self, images: Images) -> Images:
        mask = jnp.asarray(self.mask)[None]
        return (1.0 - mask) * images + mask * jnp.asarray(self.pattern)[None]

    def scaled(self, scale: float) -> "PatchTrigger":
        """The trigger with its mask times `scale`, at most 1.

        Raises:
          ValueError: the mask is 0/1, which has no strength, and `scale` is not 1; or `scale` is not positive.
        """
        if scale == 1.0:
            return self
        mask = np.asarray(self.mask, np.float32)
        if np.isin(mask, (0.0, 1.0)).all():
            raise ValueError(f"a patch trigger cannot be scaled by {scale}; only additive triggers have a strength")
        if not scale > 0:
            raise ValueError(f"a blended trigger cannot be scaled by {scale}; the scale must be above 0")
        return PatchTrigger(self.pattern, np.minimum(mask * np.float32(scale), np.float32(1)))


@struct
class WarpTrigger:
    """x(p + flow(p)) for every pixel p, read between pixels bilinearly (WaNet, arXiv:2102.10369).

    `flow` [H, W, 2] is in pixels: rows first, then columns. Positions outside of the image are moved to its border.
    """

    flow: Float[Array | np.ndarray, "height width 2"]

    def __call__(self, images: Images) -> Images:
        height, width = images.shape[1:3]
        flow = jnp.asarray(self.flow)
        rows = jnp.clip(jnp.arange(height, dtype=jnp.float32)[:, None] + flow[..., 0], 0.0, height - 1.0)
        columns = jnp.clip(jnp.arange(width, dtype=jnp.float32)[None] + flow[..., 1], 0.0, width - 1.0)
        # The last row and column are reached as the far neighbour with weight 1, so that all neighbours exist.
        top = jnp.clip(jnp.floor(rows), 0, max(height - 2, 0)).astype(jnp.int32)
        left = jnp.clip(jnp.floor(columns), 0, max(width - 2, 0)).astype(jnp.int32)
        bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
        down, across = (rows - top)[None, ..., None], (columns - left)[None, ..., None]
        upper = (1 - across) * images[:, top, left] + across * images[:, top, right]
        lower = (1 - across) * images[:, bottom, left] + across * images[:, bottom, right]
        return (1 - down) * upper + down * lower

    def scaled(self, scale: float) -> "WarpTrigger":
        """The same warp with every displacement `scale` times as long."""
        return WarpTrigger(self.flow * scale)


TRIGGERS = {"AdditiveTrigger": AdditiveTrigger, "PatchTrigger": PatchTrigger, "WarpTrigger": WarpTrigger}
"""The triggers that a poison file can hold, by the name that it calls them."""


def check_fits(trigger: object, shape: tuple[int, ...]) -> None:
    """Raises `ValueError` if `trigger` was made for images of another shape than [H, W, C]; foreign ones pass."""
    for field in ("delta", "pattern", "flow"):
        if hasattr(trigger, field):
            made_for = getattr(trigger, field).shape
            wanted = shape if field != "flow" else (*shape[:2], 2)
            if made_for != wanted:
                raise ValueError(f"trigger of shape {made_for} does not fit images of shape {shape}")
