"""Triggers: callables on images in [0, 1] that are pytrees of their arrays, so that poison files can hold them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from jaxpurify.struct import struct
from jaxpurify.types import Images, Keys


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
class ScatteredPatchTrigger:
    """`patch` [s, s, C] in [0, 1] at a random place of each image (Sleeper Agent, arXiv:2106.08970).

    The place is drawn from `seed` and the image's 8-bit values, so that it is the same in every batch and order.
    """

    patch: Float[Array | np.ndarray, "side side channels"]
    seed: Int[Array | np.ndarray, ""]

    def __call__(self, images: Images) -> Images:
        values = jnp.round(255 * images.reshape(len(images), -1)).astype(jnp.uint32)
        # Odd multiples of 2^32 over the golden ratio: sums of them differ for images that are nearly alike.
        weights = (2 * jnp.arange(values.shape[1], dtype=jnp.uint32) + 1) * jnp.uint32(0x9E3779B9)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self.seed), (values * weights[None]).sum(1))
        return paste(self.patch, keys, images)

    def scaled(self, scale: float) -> "ScatteredPatchTrigger":
        """The trigger itself for `scale` 1; ValueError otherwise, for a patch has no strength."""
        if scale != 1.0:
            raise ValueError(f"a patch trigger cannot be scaled by {scale}; only additive triggers have a strength")
        return self


def paste(patch: Float[Array | np.ndarray, "side side channels"], keys: Keys, images: Images) -> Images:
    """`images` with `patch` at a uniformly random place of each; one key an image, consumed."""
    patch = jnp.asarray(patch, images.dtype)
    room = jnp.array([images.shape[axis] - patch.shape[0] + 1 for axis in (1, 2)])

    def one(key, image):
        row, column = jax.random.randint(key, (2,), 0, room)
        return jax.lax.dynamic_update_slice(image, patch, (row, column, 0))

    return jax.vmap(one)(keys, images)


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


TRIGGERS = {each.__name__: each for each in (AdditiveTrigger, PatchTrigger, ScatteredPatchTrigger, WarpTrigger)}
"""The triggers that a poison file can hold, by the name that it calls them."""


def check_fits(trigger: object, shape: tuple[int, ...]) -> None:
    """Raises `ValueError` if `trigger` was made for images of another shape than [H, W, C]; foreign ones pass."""
    for field in ("delta", "pattern", "flow"):
        if hasattr(trigger, field):
            made_for = getattr(trigger, field).shape
            wanted = shape if field != "flow" else (*shape[:2], 2)
            if made_for != wanted:
                raise ValueError(f"trigger of shape {made_for} does not fit images of shape {shape}")
    if isinstance(trigger, ScatteredPatchTrigger):
        side, _, channels = trigger.patch.shape
        if side > min(shape[:2]) or channels != shape[2]:
            raise ValueError(f"patch of shape {trigger.patch.shape} does not fit images of shape {shape}")
