"""Adversarial examples for training a robust classifier, which also is the surrogate of label-consistent backdoors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import optax

from jaxpurify.attack.signed_adam import project
from jaxpurify.random import uniform
from jaxpurify.struct import static, struct
from jaxpurify.types import Classifier, Images, Keys


@struct
class ProjectedGradient:
    """x <- Π(x + step_size · sign ∇ CE(f(x), y)) from a uniform start (PGD, Madry et al., arXiv:1706.06083).

    An `adversary` of `train_classifier`. Defaults are the paper's for CIFAR-10: 7 steps of 2/255 within 8/255.

    Attributes:
      epsilon: bound of every value's change, units of [0, 1].
      step_size: of the ascent, in the same units.
      steps: how many.

    .. warning::
       The published code attacks the network as it trains; here f is in evaluation mode, so that no image's
       perturbation depends on its batch and running statistics do not see it.

    Raises:
      ValueError: `epsilon` outside (0, 1], a `step_size` that is not above 0, or negative `steps`.
    """

    epsilon: float = static(default=8 / 255)
    step_size: float = static(default=2 / 255)
    steps: int = static(default=7)

    def __post_init__(self):
        if not 0 < self.epsilon <= 1 or not self.step_size > 0 or self.steps < 0:
            raise ValueError(
                f"epsilon={self.epsilon}, step_size={self.step_size}, steps={self.steps}; epsilon in (0, 1], a step "
                "above 0 and at least 0 steps are accepted"
            )

    def __call__(self, classifier: Classifier, keys: Keys, images: Images, labels: Int[Array, "batch"]) -> Images:
        """Images [B, H, W, C] within epsilon of `images` and in [0, 1]; one key an image, consumed by the start."""

        def loss(delta: Images) -> Float[Array, ""]:
            return optax.softmax_cross_entropy_with_integer_labels(classifier(images + delta), labels).sum()

        delta = project((2 * uniform(keys, images.shape[1:]) - 1) * self.epsilon, images, self.epsilon)
        for _ in range(self.steps):  # unrolled, because XLA:CPU is slow at gradients inside of a loop
            delta = project(delta + self.step_size * jnp.sign(jax.grad(loss)(delta)), images, self.epsilon)
        return images + delta
