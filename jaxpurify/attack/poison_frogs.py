"""Poison Frogs: clean-label poisons that collide with the target in feature space."""

from collections.abc import Callable, Sequence
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key
import numpy as np

from jaxpurify import loop
from jaxpurify.attack.choose import StoredLabels
from jaxpurify.attack.feature_groups import choose_groups, finish, make_problem
from jaxpurify.attack.feature_steps import check_finite, descend, initial_state, poison_features
from jaxpurify.attack.signed_adam import project
from jaxpurify.attack.surrogate import Apply
from jaxpurify.data.image import to_float
from jaxpurify.data.poison import Poison, Targets
from jaxpurify.types import Purifier, PyTree, StoredImages

FORMS = ("each", "mean")


def poison_frogs(
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
    epsilon: float | None = 8 / 255,
    form: str = "each",
    steps: int = 120,
    learning_rate: float = 0.001,
    opacity: float = 0.3,
    beta: float = 0.0,
    shrink: float = 0.2,
    tolerance: float = 1e-5,
    optimizer: str = "sign_then_adam",
    decay: bool = True,
    draws: int | None = None,
    transform: Purifier | None = None,
    transform_draws: int = 1,
    augment: Callable | None = None,
    progress: loop.Report | None = None,
) -> Poison | list[Poison]:
    """Poison Frogs (arXiv:1804.00792): poisons of the target class with the target's features.

    `form="each"`: every poison by itself minimises Σ_networks ‖φ(x) - φ(t)‖² + beta/2 ‖x - b‖² by forward-backward
    steps x <- Π((x - s ∇‖φ(x) - φ(t)‖² + s beta b) / (1 + s beta)) from b + opacity (t - b). A step that raises its
    objective is taken back and s shrinks. Poison i aims at target i mod T.
    `form="mean"`: the mean over targets and feature dimensions of (mean_i φ(x_i) - φ(t_j))², by signed Adam.

    Args:
      apply, params, key, images, labels, target, targets, count, fraction, bases, separately: as in `bullseye`.
      epsilon: bound of every value, units of [0, 1], which holds in stored 8-bit images; None: no bound, for the
        variant in which `beta` holds poisons near their bases.
      form: `"each"` (the paper) or `"mean"` (the framework of arXiv:2102.13624; the gradient is Bullseye's).
      steps: published 120.
      learning_rate: first s, or the optimiser's rate: units of [0, 1] (the framework's 0.1 in normalised images is
        0.025).
      opacity: share of the target in the start, in [0, 1); 0: the base itself (usual for `"mean"`).
      beta: weight of the distance to the base; published 0.1, or 4 in normalised images.
      shrink, tolerance: of `"each"`: the factor of s, and the relative change of a poison at which it is finished.
      optimizer, decay: of `"mean"`, as in `bullseye`.
      draws, transform, transform_draws, augment, progress: as in `bullseye`. `"each"` keeps the same draws in all
        steps, since it compares their objectives.

    Returns:
      The poison, or a list of them if `separately`.

    Raises:
      ValueError: neither `epsilon` nor `beta`, numbers out of range, options of the other form, and what `bullseye`
        refuses.

    Warning: the benchmark's code never takes a bad step back, so that after its first one only s shrinks and the
    worse poison is returned.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; known: {', '.join(FORMS)}")
    if epsilon is None and not (form == "each" and beta > 0):
        raise ValueError(
            f"epsilon is None, form {form!r} and beta {beta}; one of epsilon and beta must bound the poisons"
        )
    if not 0 <= opacity < 1 or not 0 <= beta < math.inf or not 0 < shrink < 1 or steps < 1:
        raise ValueError(
            f"opacity={opacity}, beta={beta}, shrink={shrink}, steps={steps}; "
            "in [0, 1), at least 0, in (0, 1), and at least 1"
        )
    _check_unused(form, beta=beta, shrink=shrink, tolerance=tolerance, optimizer=optimizer, decay=decay)
    chosen = {"target": target, "targets": targets, "count": count, "fraction": fraction, "bases": bases}
    groups = choose_groups(images, labels, key, separately=separately, **chosen)
    problem = make_problem(
        apply,
        params,
        images,
        groups,
        objective=_each if form == "each" else _mean,
        epsilon=1.0 if epsilon is None else epsilon,
        learning_rate=learning_rate,
        optimizer=optimizer,
        decay_steps=steps if decay and form == "mean" else 0,
        draws=draws,
        transform=transform,
        transform_draws=transform_draws,
        augment=augment,
    )
    start = _watermark(problem, np.stack([group.targets.images for group in groups if group.targets]), opacity)
    how: dict[str, Any] = {
        "attack": "poison_frogs",
        "epsilon": None if epsilon is None else float(epsilon),
        "norm": "box" if epsilon is None else "linf",
        "form": form,
        "steps": steps,
        "learning_rate": float(learning_rate),
        "opacity": float(opacity),
    }
    if form == "each":
        delta = _descend_each(problem, start, steps, beta, shrink, tolerance, progress)
        how |= {"beta": float(beta), "shrink": float(shrink), "tolerance": float(tolerance)}
    else:
        (delta, _, _), _ = descend(problem, initial_state(problem, start), steps, progress)
        how |= {"optimizer": optimizer, "decay": decay}
    poisons = finish(problem, groups, delta, None, how)
    return poisons if separately else poisons[0]


def _check_unused(form, **options):
    """Refuses options of the other form, which would do nothing."""
    parameters = inspect.signature(poison_frogs).parameters
    other = ("optimizer", "decay") if form == "each" else ("beta", "shrink", "tolerance")
    for name in other:
        if options[name] != parameters[name].default:
            raise ValueError(f"{name} is {options[name]!r}; form {form!r} does not use it")


def collision_losses(
    features: Float[Array, "groups poisons ..."], aims: Float[Array, "groups targets ..."]
) -> Float[Array, "groups poisons"]:
    """‖features_i - aims_(i mod T)‖² of every poison."""
    poisons, targets = features.shape[1], aims.shape[1]
    difference = features - aims[:, jnp.arange(poisons) % targets]
    return (difference**2).reshape(*features.shape[:2], -1).sum(-1)


def mean_collision_loss(
    features: Float[Array, "groups poisons ..."], aims: Float[Array, "groups targets ..."]
) -> Float[Array, "groups"]:
    """The mean over targets j and feature dimensions of (mean_i features_i - aims_j)²."""
    difference = features.mean(1, keepdims=True) - aims
    return (difference**2).reshape(len(features), -1).mean(-1)


def _descend_each(problem, start, steps, beta, shrink, tolerance, progress):
    """The best delta that forward-backward steps find for every poison."""
    shape = problem.bases.shape[:2]
    value = jnp.full(shape, jnp.inf, jnp.float32)
    rate = jnp.full(shape, problem.learning_rate, jnp.float32)
    state = (start, value, jnp.zeros_like(start), rate, start)
    settings = tuple(jnp.float32(number) for number in (beta, shrink, tolerance))
    (delta, *_), losses = loop.scan(_each_step, state, steps, problem, settings, progress=progress)
    check_finite(np.asarray(losses).mean(-1))
    return delta


def _each_step(state, index, problem, settings):
    """Evaluates the candidate of the step before, keeps it or takes it back, and proposes the next one."""

    def total(delta):
        losses = _each_losses(poison_features(delta, jnp.uint32(0), problem), _aims(problem))
        losses = losses.reshape(problem.transform_draws, *delta.shape[:2]).mean(0)
        return losses.sum(), losses

    beta, shrink, tolerance = settings
    delta, value, gradient, rate, candidate = state
    (_, losses), fresh = jax.value_and_grad(total, has_aux=True)(candidate)
    penalised = losses + beta / 2 * (candidate**2).sum((2, 3, 4))
    accepted = penalised <= value
    bases = to_float(problem.bases)
    change = jnp.sqrt(((candidate - delta) ** 2).sum((2, 3, 4)) / ((bases + delta) ** 2).sum((2, 3, 4)))
    finished = accepted & jnp.isfinite(value) & (change < tolerance)
    delta = jnp.where(_wide(accepted), candidate, delta)
    gradient = jnp.where(_wide(accepted), fresh, gradient)
    value = jnp.where(accepted, penalised, value)
    rate = jnp.where(finished, 0.0, jnp.where(accepted, rate, rate * shrink))
    # In terms of delta = x - b the backward step is a division.
    candidate = (delta - _wide(rate) * gradient) / (1 + _wide(rate) * beta)
    return (delta, value, gradient, rate, project(candidate, bases, problem.epsilon)), value


def _each(features, aims, memory):
    return _each_losses(features, aims).mean(1), memory


def _mean(features, aims, memory):
    losses = [mean_collision_loss(*pair) for pair in _pairs(features, aims)]
    return sum(losses) / len(losses), memory


def _each_losses(features, aims):
    return jnp.stack([collision_losses(*pair) for pair in _pairs(features, aims)]).sum(0)


def _pairs(features, aims):
    """Blocks of all members beside their aims."""
    return [pair for blocks in zip(features, aims, strict=True) for pair in zip(*blocks, strict=True)]


def _aims(problem):
    return jax.tree.map(lambda block: jnp.concatenate([block] * problem.transform_draws), problem.aims)


def _watermark(problem, targets, opacity):
    bases = to_float(problem.bases)
    aims = to_float(jnp.asarray(targets[:, np.arange(bases.shape[1]) % targets.shape[1]]))
    return project(opacity * (aims - bases), bases, problem.epsilon)


def _wide(numbers):
    return numbers[:, :, None, None, None]
