"""Names for the arrays and callables that every package passes around.

`B` is the batch, `H, W, C` height, width and channels. Images are float32 in [0, 1] unless the name
says otherwise; budgets, step sizes and noise levels are in the same units (write `8 / 255`).
"""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int, Key, UInt8
import numpy as np

Images = Float[Array, "batch height width channels"]
StoredImages = UInt8[np.ndarray, "count height width channels"]
Labels = Int[Array, "batch"]
Logits = Float[Array, "batch classes"]
Energies = Float[Array, "batch"]
Keys = Key[Array, "batch"]
PyTree = Any


@runtime_checkable
class Energy(Protocol):
    """Images [B, H, W, C] in [0, 1] to one energy an image [B]; low means natural."""

    def __call__(self, images: Images, /) -> Energies: ...


@runtime_checkable
class Noise(Protocol):
    """Noise predictor: noisy images [B, H, W, C] in [-1, 1] scale and timesteps [B] to the noise in them."""

    def __call__(self, images: Images, timesteps: Int[Array, "batch"], /) -> Images: ...


@runtime_checkable
class Classifier(Protocol):
    """Images [B, H, W, C] in [0, 1] to logits [B, classes]."""

    def __call__(self, images: Images, /) -> Logits: ...


@runtime_checkable
class Purifier(Protocol):
    """One key an image and images in [0, 1] to purified images of the same shape."""

    def __call__(self, keys: Keys, images: Images, /) -> Images: ...
