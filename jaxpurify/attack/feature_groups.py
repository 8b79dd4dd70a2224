"""Which images a feature attack poisons for which targets, and the poisons of what it found."""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer, Key
import numpy as np

from jaxpurify.attack.budget import add_levels, levels, to_levels
from jaxpurify.attack.choose import Index, StoredLabels, check_draws
from jaxpurify.attack.feature_steps import OPTIMIZERS, Problem, check_finite, measure, network_features
from jaxpurify.attack.surrogate import Apply
from jaxpurify.attack.targeted import aims, choose_base
from jaxpurify.data.image import to_float
from jaxpurify.data.poison import Poison, Targets
from jaxpurify.random import named
from jaxpurify.struct import as_operand
from jaxpurify.types import Purifier, PyTree, StoredImages


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """A poison in the making: its key, the positions of its poisons, their class, and what is to be taken for it."""

    key: Key[Array, ""]
    index: Index
    target: int
    targets: Targets | None = None


def choose_groups(
    images: StoredImages,
    labels: StoredLabels,
    key: Key[Array, ""],
    *,
    target: int | Sequence[int],
    targets: Targets,
    count: int | None,
    fraction: float | None,
    bases: Integer[np.ndarray, "..."] | None,
    separately: bool,
) -> list[Group]:
    """Which images become poisons, for all targets together or `separately` for each.

    Poisons are images of the intended class `target`: drawn with the group's key, or the given `bases` [P] (or
    [G, P]). Group g of several has the key `fold_in(key, g)`.

    Raises:
      ValueError: targets of another shape or already of the intended class, classes that are not one a group, bases
        that are out of range or of another class, or more poisons than images of the class.
    """
    aimed = aims(images, labels, key, target, targets, separately)
    bases = None if bases is None else np.asarray(bases)
    rows = [bases] * len(aimed)
    if bases is not None and bases.ndim == 2:
        if not separately or len(bases) != len(aimed):
            raise ValueError(
                f"bases are {bases.shape}; one axis, or with separately a row for each of {len(targets)} targets"
            )
        rows = list(bases)
    groups = []
    for aim, own in zip(aimed, rows, strict=True):
        index = choose_base(named(aim.key, "choice"), labels, aim.target, count, fraction, own)
        groups.append(Group(aim.key, index, aim.target, aim.targets))
    if len({len(group.index) for group in groups}) > 1:
        raise ValueError("rows of bases name different numbers of images; targets side by side need as many each")
    return groups


def make_problem(
    apply: Apply,
    params: PyTree,
    images: StoredImages,
    groups: list[Group],
    *,
    objective: Callable,
    epsilon: float,
    learning_rate: float,
    optimizer: str = "adam",
    decay_steps: int = 0,
    restarts: int = 1,
    draws: int | None = None,
    transform: Purifier | None = None,
    transform_draws: int = 1,
    augment: Callable | None = None,
) -> Problem:
    """The problem of all groups, each `restarts` times in a row, with the targets' features computed once.

    Raises:
      ValueError: `epsilon` outside [1/255, 1], counts below 1, draws of no noise, an unknown optimiser, a learning rate
        that is not above 0, or an `apply` that does not give features.
    """
    levels(epsilon)
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is {optimizer!r}; known: {', '.join(OPTIMIZERS)}")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate is {learning_rate}; it must be above 0")
    for name, number in (("restarts", restarts), ("draws", draws)):
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")
    check_draws(transform_draws, transform, augment)
    members = tuple(params) if isinstance(params, tuple | list) else (params,)
    if not members:
        raise ValueError("params holds no surrogate; give at least one")
    rows = [group for group in groups for _ in range(restarts)]
    keys = jnp.stack([jax.random.fold_in(group.key, row % restarts) for row, group in enumerate(rows)])
    apply = as_operand(apply)
    wanted = ()
    if groups[0].targets is not None:
        aimed = jnp.asarray(np.stack([group.targets.images for group in rows if group.targets is not None]))
        wanted = _target_features(apply, members, aimed, named(groups[0].key, "aims"), draws)
    return Problem(
        apply=apply,
        members=members,
        transform=as_operand(transform),
        augment=as_operand(augment),
        key=groups[0].key,
        keys=keys,
        positions=jnp.asarray(np.stack([group.index for group in rows]), jnp.int32),
        bases=jnp.asarray(np.stack([images[group.index] for group in rows])),
        aims=wanted,
        epsilon=jnp.float32(epsilon),
        learning_rate=jnp.float32(learning_rate),
        objective=objective,
        optimizer=optimizer,
        decay_steps=decay_steps,
        draws=draws,
        transform_draws=transform_draws,
    )


def finish(problem: Problem, groups: list[Group], delta: Any, memory: PyTree, how: dict[str, Any]) -> list[Poison]:
    """The poisons of each group in whole 8-bit levels, of the restart whose objective is the lowest there.

    `how` (with `epsilon`, None: only the image box) gains what the problem says of itself, and `clean_objective` and
    `objective`, measured on stored images.
    """
    if not np.isfinite(np.asarray(delta)).all():
        raise ValueError("the gradient of the features is not finite; check the weights of the surrogate")
    limit = 1.0 if how["epsilon"] is None else how["epsilon"]
    bases, change = np.asarray(problem.bases), to_levels(np.asarray(delta), limit)
    stored = np.stack([add_levels(rows, part) for rows, part in zip(bases, change, strict=True)])
    moved = to_float(jnp.asarray(stored)) - to_float(jnp.asarray(bases))
    clean, objective = (np.asarray(measure(problem, at, memory)) for at in (jnp.zeros_like(moved), moved))
    check_finite(objective[None])
    restarts = len(objective) // len(groups)
    how = {"labels_changed": False, "norm": "linf", **how, **_described(problem)}
    poisons = []
    for number, group in enumerate(groups):
        best = number * restarts + int(objective[number * restarts :][:restarts].argmin())
        measured = {"clean_objective": float(clean[best]), "objective": float(objective[best])}
        poisons.append(
            Poison(
                images=stored[best],
                labels=np.full(len(group.index), group.target, np.int32),
                index=group.index,
                target=group.target,
                how={**how, "count": len(group.index), **measured},
                targets=group.targets,
            )
        )
    return poisons


def _described(problem: Problem) -> dict[str, Any]:
    return {
        "members": len(problem.members),
        "blocks": [len(blocks) for blocks in problem.aims],
        "draws": problem.draws,
        "augmented": problem.augment is not None,
        "adaptive": problem.transform is not None,
        "transform_draws": problem.transform_draws,
    }


@jax.jit(static_argnums=4)
def _target_features(apply, members, images, key, draws):
    return network_features(apply, members, to_float(images), key, draws)
