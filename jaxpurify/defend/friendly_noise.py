"""Friendly noise: the largest noise that leaves predictions alone, and random noise on top (arXiv:2208.10224)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, UInt32

from jaxpurify import loop
from jaxpurify.random import fold, normal, uniform
from jaxpurify.struct import static, struct
from jaxpurify.types import Classifier, Images, Keys


@struct
class FriendlyNoise:
    """Adds to every image a noise that the classifier does not feel; made once, some epochs into training.

    delta minimises KL(f(x) ‖ f(clip(x + clamp(delta), 0, 1))) − weight · mean(delta²) by gradient descent with
    Nesterov momentum 0.9 from U(−start, start), its rate times 0.1 after 1/2 and 3/4 of the steps. Called like a
    purifier, so `jaxpurify.purify` takes a data set through it; one key an image, consumed, draws the start.

    Attributes:
      classifier: the network at that moment of training (published: after epoch 5), images to logits.
      epsilon: the clamp, units of [0, 1]; published 16/255.
      start: half width of the first delta; published 8/255.
      learning_rate: of one image's own loss. Published: 100 on the mean over batches of 128, so 100/128.
      weight: μ, published 16.
      steps: published 20.

    .. warning::
       The published code (PureGen, arXiv:2405.18627) leaves batch normalisation in training mode, so that an
       image's noise depends on its batch; a frozen classifier, as here, makes every image independent.

    Raises:
      ValueError: negative `steps`.
    """

    classifier: Classifier
    epsilon: Float[ArrayLike, ""] = 16 / 255
    start: Float[ArrayLike, ""] = 8 / 255
    learning_rate: Float[ArrayLike, ""] = 100 / 128
    weight: Float[ArrayLike, ""] = 16.0
    steps: int = static(default=20)

    def __post_init__(self):
        if not isinstance(self.steps, int) or self.steps < 0:
            raise ValueError(f"steps={self.steps!r}; it must be 0 or more")

    def __call__(self, keys: Keys, images: Images) -> Images:
        delta = self.optimise(keys, images)
        return jnp.clip(images + delta, 0.0, 1.0)

    def optimise(self, keys: Keys, images: Images) -> Images:
        """The noise delta [B, H, W, C], within ±epsilon."""
        delta = _first(keys, images, self.start)
        state = (delta, jnp.zeros_like(delta))
        delta, _ = loop.repeat(_step, state, self.steps, self, images)
        return _clamp(delta, self.epsilon)

    def objective(self, delta: Images, images: Images) -> Float[Array, "batch"]:
        """What is minimised, for every image [B]."""
        clamped = _clamp(delta, self.epsilon)
        noisy = jax.nn.log_softmax(self.classifier(jnp.clip(images + clamped, 0.0, 1.0)))
        plain = jax.lax.stop_gradient(jax.nn.log_softmax(self.classifier(images)))
        divergence = (jnp.exp(plain) * (plain - noisy)).sum(-1)
        return divergence - self.weight * jnp.square(delta).mean((1, 2, 3))


@struct
class RandomNoise:
    """Random noise for training images, an augmentation: ± epsilon (`bernoulli`) or N(0, epsilon²) (`gaussian`).

    It is not clipped to [0, 1], as published. One key an image, consumed.

    Attributes:
      epsilon: its size, units of [0, 1]; published 8/255.
      kind: `bernoulli` (FRIENDS-B) or `gaussian` (FRIENDS-G).

    Raises:
      ValueError: unknown `kind`.
    """

    epsilon: Float[ArrayLike, ""] = 8 / 255
    kind: str = static(default="bernoulli")

    def __post_init__(self):
        if self.kind not in ("bernoulli", "gaussian"):
            raise ValueError(f"kind={self.kind!r}; known: bernoulli, gaussian")

    def __call__(self, keys: Keys, images: Images) -> Images:
        if self.kind == "gaussian":
            return images + self.epsilon * normal(keys, images.shape[1:])
        return images + self.epsilon * jnp.where(uniform(keys, images.shape[1:]) < 0.5, -1.0, 1.0)


def _step(
    state: tuple[Images, Images], index: UInt32[Array, ""], defence: FriendlyNoise, images: Images
) -> tuple[Images, Images]:
    delta, momentum = state
    gradient = jax.grad(lambda delta: defence.objective(delta, images).sum())(delta)
    drops = (index >= defence.steps // 2).astype(jnp.float32) + (index >= defence.steps * 3 // 4)
    momentum = 0.9 * momentum + gradient
    delta = delta - defence.learning_rate * 0.1**drops * (gradient + 0.9 * momentum)
    return delta, momentum


def _clamp(delta: Images, epsilon: Float[ArrayLike, ""]) -> Images:
    limit = jnp.asarray(epsilon)
    return jnp.clip(delta, -limit, limit)


@jax.jit
def _first(keys, images, start):
    return start * (2 * uniform(fold(keys, 0), images.shape[1:]) - 1)
