"""Features of image sets that differ in few images: what an earlier set has in common is not embedded again."""

from collections.abc import Callable

from jaxtyping import Float
import numpy as np

from jaxpurify.train.heads import embed
from jaxpurify.types import StoredImages

BATCH = 500  # images at a time, few changed ones too: one program then gives every image the same features
KEPT = 12  # sets: the test images, and the training set as each defence of a table leaves it


class Embedded:
    """`embed(features, images)`, in which images of an earlier set at the same positions keep their features.

    Sets are compared by their pixels, so that it does not matter why they are alike: undefended training sets differ
    in their poisons, those behind one purifier in the poisons that went through it. A set that shares less than half
    with each of the kept ones is embedded whole and kept, in the place of the one that was not used for longest.

    Args:
      features: images [B, H, W, C] in [0, 1] to features [B, F], as in `embed`.
    """

    def __init__(self, features: Callable):
        self.features = features
        self._kept: list[tuple[StoredImages, np.ndarray]] = []  # the last one used at the end

    def __call__(self, images: StoredImages) -> Float[np.ndarray, "count features"]:
        """Features [N, F] of uint8 images [N, H, W, C], which must not be written to afterwards."""
        size = min(BATCH, len(images))
        changed, place = self._nearest(images)
        if place is None:
            entry = images, embed(self.features, images, batch_size=size)
            self._kept = [*self._kept, entry][-KEPT:]
            return entry[1].copy()
        self._kept.append(self._kept.pop(place))
        found = self._kept[-1][1].copy()
        if len(changed):
            filled = np.resize(changed, -(-len(changed) // size) * size)
            found[changed] = embed(self.features, images[filled], batch_size=size)[: len(changed)]
        return found

    def _nearest(self, images: StoredImages) -> tuple[np.ndarray, int | None]:
        """The positions at which `images` differ from the kept set that is most like them, and that set's place."""
        changed, place = np.arange(len(images)), None
        for number, (other, _) in enumerate(self._kept):
            if other.shape == images.shape:
                differing = np.flatnonzero((images != other).any((1, 2, 3)))
                if len(differing) < min(len(changed), len(images) / 2):
                    changed, place = differing, number
        return changed, place
