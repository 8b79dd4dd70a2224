"""Bullseye Polytope: clean-label poisons whose mean feature is the feature of the target."""

from collections.abc import Callable, Sequence
import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key
import numpy as np

from jaxpurify import loop
from jaxpurify.attack.choose import StoredLabels
from jaxpurify.attack.feature_groups import choose_groups, finish, make_problem
from jaxpurify.attack.feature_steps import descend, initial_state, start_at
from jaxpurify.attack.surrogate import Apply
from jaxpurify.data.poison import Poison, Targets
from jaxpurify.types import Purifier, PyTree, StoredImages

OBJECTIVES = ("relative", "relative_squared", "mean_squared")


def bullseye(
    apply: Apply,
    params: PyTree,
    key: Key[Array, ""],
    images: StoredImages,
    labels: StoredLabels,
    *,
    target: int | Sequence[int],
    targets: Targets,
    count: int | None = None,
    fraction: float | None = None,
    bases: Integer[np.ndarray, "..."] | None = None,
    separately: bool = False,
    epsilon: float = 8 / 255,
    objective: str = "relative",
    steps: int = 1200,
    learning_rate: float = 0.008,
    optimizer: str = "signed_adam",
    decay: bool = False,
    start: str = "zero",
    restarts: int = 1,
    draws: int | None = None,
    transform: Purifier | None = None,
    transform_draws: int = 1,
    augment: Callable | None = None,
    progress: loop.Report | None = None,
) -> Poison | list[Poison]:
    """Bullseye Polytope (arXiv:2005.00191): P images of the target class surround the target in feature space.

    delta = argmin over |delta|∞ <= epsilon of the mean over networks and blocks of
    ‖mean_i φ(x_i + delta_i) - mean_j φ(t_j)‖ / ‖mean_j φ(t_j)‖.

    Args:
      apply: `(member, images [B, H, W, C] in [0, 1]) -> features [B, F]` (linear transfer), or a list of
        feature maps [B, …, F], one a block (end-to-end: the mean over blocks and positions is taken).
      params: the surrogate, or a tuple or list of them; new values do not recompile.
      key: draws the poisons, a `"normal"` start, and what `transform`, `augment` and the network draw; consumed.
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels, integers [N].
      target: the class that the targets are to be taken for; poisons are images of it, labels kept. One a target
        image, if `separately`.
      targets: the images t. All together, or each with poisons of its own if `separately`.
      count: how many poisons; or
      fraction: the same as a share of all N images; or
      bases: the positions of the images that become poisons, [P], or [T, P] if `separately`.
      separately: one poison for each target image, crafted side by side in one program. Target g has the key
        `fold_in(key, g)`.
      epsilon: bound of every value, units of [0, 1]; holds in stored 8-bit images. Published: 0.1.
      objective: `"relative"` as above (published code), `"relative_squared"`: half its square (the paper's
        formula), `"mean_squared"`: the mean over feature dimensions of the squared difference (the framework of
        arXiv:2102.13624).
      steps: optimiser steps. Published: 4000 or 800 (linear transfer), 1500 (end-to-end), 1200 (benchmark).
      learning_rate: units of [0, 1]; the published 0.04 for images divided by a deviation of 0.2 is 0.008.
      optimizer: `"signed_adam"` as published, `"sign_then_adam"` (the framework's), or `"adam"`.
      decay: whether the rate falls to a tenth at 3/8, 5/8 and 7/8 of the steps (the framework's).
      start: `"zero"`, or `"normal"` (the framework's).
      restarts: independent starts in the same program; the one with the lowest objective is kept.
      draws: for networks with active dropout: `apply` is then called as `apply(member, images, key)`, this many
        times a step, and the features are averaged (published: 1, 3 or 5). What is drawn is shared by all targets, so
        that with it a poison depends on those crafted beside it.
      transform: keys [B] and poisons to images, through which the gradient goes: what the victim does to its
        training data. A purifier here makes the attack adaptive. Targets do not go through it.
      transform_draws: how many draws of `transform` and `augment` the objective is averaged over.
      augment: the victim's differentiable augmentation, keys [B] and images, after `transform`.
      progress: called with (finished steps, all steps).

    Returns:
      The poison, or a list of them if `separately`; `how` holds the objective without and with it.

    Raises:
      ValueError: `epsilon` outside [1/255, 1], a target of the intended class, more poisons than images of the
        class, unknown names, or an objective that stopped being finite.

    Warning: the published code minimises the ratio of norms, the paper prints half its square; with a signed
    optimiser both lead to the same poisons for one network.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is {objective!r}; known: {', '.join(OBJECTIVES)}")
    if restarts > 1 and start == "zero":
        raise ValueError(f"restarts is {restarts} with start 'zero': all would be equal; use start 'normal'")
    chosen = {"target": target, "targets": targets, "count": count, "fraction": fraction, "bases": bases}
    groups = choose_groups(images, labels, key, separately=separately, **chosen)
    problem = make_problem(
        apply,
        params,
        images,
        groups,
        objective=_objective(objective),
        epsilon=epsilon,
        learning_rate=learning_rate,
        optimizer=optimizer,
        decay_steps=steps if decay else 0,
        restarts=restarts,
        draws=draws,
        transform=transform,
        transform_draws=transform_draws,
        augment=augment,
    )
    (delta, _, memory), _ = descend(problem, initial_state(problem, start_at(problem, start)), steps, progress)
    how = {
        "attack": "bullseye",
        "epsilon": float(epsilon),
        "objective_form": objective,
        "steps": steps,
        "learning_rate": float(learning_rate),
        "optimizer": optimizer,
        "decay": decay,
        "start": start,
        "restarts": restarts,
    }
    poisons = finish(problem, groups, delta, memory, how)
    return poisons if separately else poisons[0]


def bullseye_loss(
    features: Float[Array, "groups poisons ..."], aims: Float[Array, "groups targets ..."], form: str = "relative"
) -> Float[Array, "groups"]:
    """The objective [G] of one block: features [G, P, …, F] of poisons against [G, T, …, F] of targets.

    Norms are over the last axis; ratios are averaged over the axes before it, where the target is not all zero.
    """
    centre = aims.mean(1)
    difference = features.mean(1) - centre
    if form == "mean_squared":
        return (difference**2).reshape(len(features), -1).mean(1)
    scale = (centre**2).sum(-1).reshape(len(features), -1)
    squared = (difference**2).sum(-1).reshape(len(features), -1)
    counted = scale != 0  # true for NaN, which must not go unnoticed
    ratio = jnp.where(counted, squared / jnp.where(counted, scale, 1.0), 0.0)
    if form == "relative":
        # The square root has no gradient at 0, where poisons already are on the target.
        positive = ratio != 0
        ratio = jnp.where(positive, jnp.sqrt(jnp.where(positive, ratio, 1.0)), 0.0)
    else:
        ratio = ratio / 2
    return ratio.sum(1) / jnp.maximum(counted.sum(1), 1)


@functools.cache
def _objective(form):
    def objective(features, aims, memory):
        pairs = zip(features, aims, strict=True)
        members = [_mean([bullseye_loss(*pair, form) for pair in zip(*blocks, strict=True)]) for blocks in pairs]
        return _mean(members), memory

    return objective


def _mean(losses):
    return sum(losses) / len(losses)
