"""The attack inside a training step of adversarial poisoning (arXiv:2102.13624): poisons simulated in every batch.

A batch has a poison part x_P, y_P and a target part x_T that stands for images which an attacker wants to be taken
for ỹ_T. A few steps perturb the poison part, δ* = argmin over |δ| ≤ epsilon of A(θ; x_P + δ, y_P; x_T, ỹ_T); the
defence then trains on x_P + δ* and x_T with their true labels.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import optax

from jaxpurify import loop
from jaxpurify.attack.matching import Passenger, cross_entropy
from jaxpurify.attack.second_order import two_pass
from jaxpurify.attack.signed_adam import project, sign_then_adam
from jaxpurify.random import normal
from jaxpurify.struct import as_operand, static, struct
from jaxpurify.types import PyTree

OBJECTIVES = ("wb", "se", "fc", "evasion")
STARTS = ("normal", "zero")
Poisons = Float[Array, "poisons height width channels"]
Targets = Float[Array, "targets height width channels"]


@struct
class RowLosses:
    """The cross-entropy of each row of the poison part."""

    apply: PyTree

    def __call__(self, params: PyTree, delta: Poisons, rows: tuple) -> Float[Array, "poisons"]:
        images, labels = rows
        return optax.softmax_cross_entropy_with_integer_labels(self.apply(params, images + delta), labels)


@struct
class Objective:
    """What the inner attack minimises, with the part of it that depends on the targets computed once.

    | name | A |
    |---|---|
    | wb | -cos(∇_θ L(x_P + δ, y_P), ∇_θ L(x_T, ỹ_T)) over all parameters jointly |
    | se | ½ ‖∇_θ L(x_T, ỹ_T) - ∇_θ L(x_P + δ, y_P)‖² / ‖∇_θ L(x_T, ỹ_T)‖ |
    | fc | mean over features of (mean_i φ(x_P + δ)_i - mean_j φ(x_T)_j)² |
    | evasion | -L(x_P + δ, y_P): ordinary adversarial training |

    L is the mean cross-entropy. Made by `inner_objective`; called with delta it gives the value and its gradient.

    Attributes:
      apply, params: the network, `apply(params, images)` giving logits, features for "fc".
      images, labels: the poison part, [P, H, W, C] in [0, 1] and [P].
      aim: the targets' gradient, their mean features [F], or nothing.
      name: one of `OBJECTIVES`.
    """

    apply: PyTree
    params: PyTree
    images: Poisons
    labels: Int[Array, "poisons"]
    aim: PyTree
    name: str = static()

    def __call__(self, delta: Poisons) -> tuple[Float[Array, ""], Poisons]:
        if self.name in ("wb", "se"):
            operands = RowLosses(self.apply), self.params, delta, (self.images, self.labels)
            return two_pass(*operands, lambda poison: matching_loss(self.name, poison, self.aim))
        return jax.value_and_grad(self._first_order)(delta)

    def _first_order(self, delta):
        answer = self.apply(self.params, self.images + delta)
        if self.name == "fc":
            return jnp.square(answer.mean(0) - self.aim).mean()
        return -cross_entropy(answer, self.labels)


def matching_loss(name: str, poison: PyTree, target: PyTree) -> Float[Array, ""]:
    """How far a poison gradient p is from the targets' gradient t, trees alike: -⟨t, p⟩ / (‖t‖ ‖p‖) for "wb".

    ½ ‖t - p‖² / ‖t‖ for "se"; sums and norms are over all parameters jointly.
    """
    if name == "wb":
        return Passenger("similarity")(poison, target) - 1.0
    return Passenger("SE")(poison, target)


def inner_objective(
    apply: Callable[..., Any],
    params: PyTree,
    images: Poisons,
    labels: Int[Array, "labels"],
    targets: Targets | None = None,
    intended: Int[Array, "intended"] | None = None,
    *,
    objective: str = "wb",
) -> Objective:
    """The objective of an inner attack on one batch; see `inner_attack` for the arguments and errors."""
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is {objective!r}; known: {', '.join(OBJECTIVES)}")
    if not len(images) or len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels to poison; one each and at least one needed")
    aim = None
    if objective != "evasion":
        if targets is None or not len(targets):
            raise ValueError(f"objective is {objective!r} and there is no target image; only 'evasion' works without")
        if objective != "fc" and (intended is None or len(intended) != len(targets)):
            count = 0 if intended is None else len(intended)
            raise ValueError(f"{len(targets)} target images and {count} intended labels; one each needed")
        aim = _aim(objective, as_operand(apply), params, targets, intended)
    return Objective(as_operand(apply), params, images, labels, aim, objective)


def inner_attack(
    apply: Callable[..., Any],
    params: PyTree,
    keys: Key[Array, "keys"],
    images: Poisons,
    labels: Int[Array, "labels"],
    targets: Targets | None = None,
    intended: Int[Array, "intended"] | None = None,
    *,
    objective: str = "wb",
    epsilon: float = 16 / 255,
    learning_rate: float = 0.025,
    steps: int = 5,
    start: str = "normal",
) -> tuple[Poisons, Float[Array, "steps"]]:
    """δ* of one training batch: `steps` steps of Adam on the sign of the gradient, projected after each.

    Nothing outlives the call: Adam's moments are fresh, and the network is a function, in evaluation mode, so that
    running statistics stay as they are. May run inside a compiled training step.

    Args:
      apply: `apply(params, images)` gives logits [B, classes] in evaluation mode, features [B, F] for "fc"; no row
        may depend on another one.
      params: the trainable parameters, over which gradients are matched.
      keys: one key an image of the poison part [P], consumed by the normal start.
      images, labels: the poison part, [P, H, W, C] in [0, 1] and its true labels [P].
      targets, intended: the target part [T, H, W, C] and the labels that an attacker would like them to get [T]
        (published: the most frequent of `labels` for all). "fc" needs no labels, "evasion" neither.
      objective: one of `OBJECTIVES`, see `Objective`.
      epsilon: bound of |δ|, units of [0, 1]; published 16/255, 8/255 for "evasion".
      learning_rate: τ, units of [0, 1]. Published: 0.1 in units of the data's standard deviation, about 0.025 on
        CIFAR-10.
      steps: K; published 5.
      start: "normal" (standard normal numbers times epsilon, projected) or "zero".

    Returns:
      δ* [P, H, W, C], a constant for any later gradient, with |δ*| ≤ epsilon and x_P + δ* in [0, 1]; and the
      objective [K] before each step.

    Raises:
      ValueError: unknown `objective` or `start`, an epsilon that is not in (0, 1], a rate that is not above 0,
        negative `steps`, an empty part that the objective needs, numbers of images and labels that differ.

    .. warning::
       The published code projects the normal start onto the epsilon box only; here it is in the image box as well,
       so that the result is an image for any number of steps.
    """
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon is {epsilon}; it must be above 0 and at most 1, in units of [0, 1]")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate is {learning_rate}; it must be above 0 and finite")
    if steps < 0:
        raise ValueError(f"steps is {steps}; it must be 0 or more")
    if start not in STARTS:
        raise ValueError(f"start is {start!r}; known: {', '.join(STARTS)}")
    # Without this a caller that differentiates its own loss would trace through the attack to throw the result away.
    params, images, targets = lax.stop_gradient((params, images, targets))
    problem = inner_objective(apply, params, images, labels, targets, intended, objective=objective)
    delta = jnp.zeros_like(images)
    if start == "normal":
        delta = project(epsilon * normal(keys, images.shape[1:]), images, epsilon)
    if not steps:
        return delta, jnp.zeros(0)
    state = delta, sign_then_adam(learning_rate).init(delta)
    (delta, _), values = loop.scan(_step, state, steps, problem, jnp.asarray(epsilon), jnp.asarray(learning_rate))
    return delta, values


@functools.partial(jax.jit, static_argnums=0)
def _aim(objective, apply, params, targets, intended):
    if objective == "fc":
        return apply(params, targets).mean(0)
    return jax.grad(lambda params: cross_entropy(apply(params, targets), intended))(params)


def _step(state, index, problem: Objective, epsilon: Array, learning_rate: Array):
    del index  # the rate is constant
    delta, moments = state
    value, gradient = problem(delta)
    updates, moments = sign_then_adam(learning_rate).update(gradient, moments, delta)
    delta = project(optax.apply_updates(delta, updates), problem.images, epsilon)
    return (delta, moments), value
