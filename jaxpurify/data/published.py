"""How PureGen's published code (arXiv:2405.18627) puts poisons into data: for exact comparisons, not for use.

Our own way is `poison_dataset`: poisons replace images at their positions, perturbations are rounded.
"""

from jaxtyping import Float
import numpy as np

from jaxpurify.data.dataset import Dataset
from jaxpurify.data.poison import Poison, poison_dataset
from jaxpurify.types import StoredImages


def compat_triggered(images: StoredImages, patch: Float[np.ndarray, "_ _ _"]) -> StoredImages:
    """floor(255 · (clamp(x + patch, -1, 1) + 1) / 2) in float32, with x = (v / 255 − 0.5) / 0.5.

    Args:
      images: uint8 [N, H, W, C].
      patch: in [-1, 1] units, so that a budget of 8/255 is at most 16/255 here; published files hold it as
        [1, C, H, W].

    .. warning::
       The truncation alone lowers grey levels 1 … 63 by one, also where the patch is zero.

    Raises:
      ValueError: the patch does not fit the images.
    """
    if patch.shape != images.shape[1:]:
        raise ValueError(f"a patch of shape {patch.shape} does not fit images of shape {images.shape[1:]}")
    half, one = np.float32(0.5), np.float32(1)
    signed = (images.astype(np.float32) / np.float32(255) - half) / half
    added = np.clip(signed + patch[None].astype(np.float32), -one, one)
    return np.floor((added + one) / np.float32(2) * np.float32(255)).astype(np.uint8)


def compat_merged(dataset: Dataset, poison: Poison, *, quota: int | None = None) -> Dataset:
    """The poisoned set in the published order: all poisons first, then the clean images that no poison replaces.

    At most `quota` images a class are kept, in that order, poisons counted by the label that they carry. Published
    quotas: 5000 for CIFAR-10, 9000 for CINIC-10, 500 for Tiny-ImageNet, which leave out images only where the
    poisons carry another label than what they replace.

    Raises:
      ValueError: `quota` below 1, or as in `poison_dataset`.
    """
    if quota is not None and quota < 1:
        raise ValueError(f"quota={quota}; it must be at least 1 image a class, or None")
    poisoned = poison_dataset(dataset, poison)
    order = np.concatenate([poison.index, np.setdiff1d(np.arange(len(dataset)), poison.index)])
    if quota is not None:
        labels = poisoned.labels[order]
        earlier = np.zeros(len(order), np.int64)
        for label in np.unique(labels):
            earlier[labels == label] = np.arange((labels == label).sum())
        order = order[earlier < quota]
    return poisoned.select(order)
