"""The quickest victim there is, for tests of grids."""

from flax import nnx
import jax

from jaxpurify.evaluate.protocol import Protocol
from jaxpurify.networks.layers import Linear
from jaxpurify.train.classifier import Recipe


class Flat(nnx.Module):
    """A classifier with one hidden layer for 8 × 8 images."""

    def __init__(self, width=4, *, rngs):
        self.hidden = Linear(64, 16 * width, rngs=rngs)
        self.linear = Linear(16 * width, 10, rngs=rngs)

    def features(self, images):
        return jax.nn.relu(self.hidden(images.reshape(len(images), -1)))

    def __call__(self, images):
        return self.linear(self.features(images))


def tiny_protocol():
    """The demo's data with a `Flat` victim, which must be registered in `NETWORKS` as `flat`."""
    recipe = Recipe(epochs=4, batch_size=50, learning_rate=0.2)
    return Protocol("tiny", "digits[:500]", "digits[500:800]", "digits[800:1300]", "flat", {"width": 4}, recipe, None)
