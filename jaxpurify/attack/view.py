"""What a victim sees of perturbed images, and what it loses on each of them: the parts of objectives over rows."""

import jax.numpy as jnp
from jaxtyping import Array, Float
import optax

from jaxpurify.random import fold
from jaxpurify.struct import static, struct
from jaxpurify.types import Images, Keys, PyTree

Rows = Float[Array, "rows height width channels"]
Draws = Float[Array, "rows draws height width channels"]


@struct
class View:
    """What a victim sees of perturbed rows: purified (`transform`), then augmented; both may be None."""

    transform: PyTree = None
    augment: PyTree = None

    def __call__(self, keys: Keys, images: Images, draw: int = 0) -> Images:
        return self.augmented(keys, self.purified(keys, images, draw), draw)

    def purified(self, keys: Keys, images: Images, draw: int = 0) -> Images:
        """The images behind `transform` alone."""
        return images if self.transform is None else self.transform(fold(fold(keys, 0), draw), images)

    def augmented(self, keys: Keys, images: Images, draw: int = 0) -> Images:
        """Images that are purified already, behind `augment`."""
        return images if self.augment is None else self.augment(fold(fold(keys, 1), draw), images)


@struct
class RowLosses:
    """The training loss of each row, averaged over `draws` draws of the view."""

    apply: PyTree
    view: View = View()
    draws: int = static(default=1)

    def __call__(self, params: PyTree, delta: Rows, rows: tuple) -> Float[Array, "rows"]:
        images, labels, keys = rows
        seen = [self.view(keys, images + delta, draw) for draw in range(self.draws)]
        return _mean_losses(self.apply, params, seen, labels)


@struct
class PurifiedRows:
    """x + δ behind the view's purifier [B, D, H, W, C], one image for each of the D = `draws` draws."""

    view: View
    draws: int = static(default=1)

    def __call__(self, delta: Rows, rows: tuple) -> Draws:
        images, _, keys = rows
        return jnp.stack([self.view.purified(keys, images + delta, draw) for draw in range(self.draws)], 1)


@struct
class PurifiedLosses:
    """`RowLosses` of what `PurifiedRows` gives."""

    apply: PyTree
    view: View

    def __call__(self, params: PyTree, purified: Draws, rows: tuple) -> Float[Array, "rows"]:
        _, labels, keys = rows
        seen = [self.view.augmented(keys, purified[:, draw], draw) for draw in range(purified.shape[1])]
        return _mean_losses(self.apply, params, seen, labels)


@struct
class HiddenDistance:
    """mean((φ(a(x + δ)) - φ(b(x)))²) of each row, a and b two draws of the view, summed over members with φ each."""

    features: tuple
    members: tuple
    view: View

    def __call__(self, delta: Rows, rows: tuple) -> Float[Array, "rows"]:
        images, _, keys = rows
        perturbed, clean = self.view(fold(keys, 2), images + delta), self.view(fold(keys, 3), images)
        total = jnp.zeros(len(images))
        for features, member in zip(self.features, self.members, strict=True):
            moved = jnp.square(features(member, perturbed) - features(member, clean))
            total = total + moved.reshape(len(images), -1).mean(1)
        return total


def _mean_losses(apply, params, seen, labels):
    """Cross-entropy [B], averaged over several draws of the images."""
    total = jnp.zeros(len(labels))
    for images in seen:
        total = total + optax.softmax_cross_entropy_with_integer_labels(apply(params, images), labels)
    return total / len(seen)
