"""MetaPoison: poisons through the training steps that a victim will take on them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
import numpy as np

from jaxpurify.attack.budget import levels
from jaxpurify.attack.choose import StoredLabels
from jaxpurify.attack.crafting import advance, check_settings, crafted_poison, start
from jaxpurify.attack.matching import check_criterion
from jaxpurify.attack.matching_objective import ensemble, replaced
from jaxpurify.attack.surrogate import Apply, as_operand
from jaxpurify.attack.targeted import check_outputs, check_targets, choose_base, make_crafting
from jaxpurify.attack.unrolled import Unrolled
from jaxpurify.attack.view import View
from jaxpurify.data.poison import Poison, Targets
from jaxpurify.random import named
from jaxpurify.types import Purifier, PyTree, StoredImages

# (applies, members, the crafting step at which it is called, key) to (apply, params): one more epoch of each member,
# or a fresh start.
Refresh = Callable[[tuple, tuple, int, Any], Any]


def metapoison(
    apply: Apply | tuple | list,
    params: PyTree,
    key: Key[Array, ""],
    images: StoredImages,
    labels: StoredLabels,
    *,
    target: int,
    targets: Targets,
    base: int | None = None,
    count: int | None = None,
    fraction: float | None = None,
    epsilon: float = 8 / 255,
    unroll: int = 2,
    inner_rate: float = 0.1,
    criterion: str = "cw2",
    depths: str = "last",
    clean_count: int = 0,
    later_poisons: bool = True,
    steps: int = 60,
    restarts: int = 1,
    learning_rate: float = 0.025,
    decay: bool = True,
    optimizer: str = "sign_then_adam",
    refresh: Refresh | None = None,
    refresh_every: int = 1,
    augment: Any = None,
    transform: Purifier | None = None,
    transform_draws: int = 1,
) -> Poison:
    """MetaPoison (arXiv:2004.00225): minimises the targets' loss after K unrolled steps of training on the poisons.

    θ_0 = a member's parameters, θ_{k+1} = θ_k - inner_rate · ∇ mean CE(f(x + δ; θ_k), y), and the objective is
    criterion(f(x_target; θ_K), target), or its mean over depths 1 … K, summed over the members.

    Two published forms. The framework's (as in arXiv:2009.02276's code): `unroll` steps on the poisons alone,
    criterion "xent", as the arguments stand otherwise. The original's: `depths="mean"`, criterion "cw2",
    `clean_count=125`, `later_poisons=False`, `optimizer="adam"` with `learning_rate=200/255`, an ensemble of members
    at different epochs, and `refresh` that trains each on by an epoch of clean data or starts it afresh.

    Args:
      apply: the surrogate, `(params, images) -> logits`; a list with one a member where members differ. Evaluation
        mode keeps rows apart; the original's train-mode statistics need an `apply` that computes them.
      params: what training moves; a tuple or list is an ensemble.
      key: draws poisons, starts, clean images, augmentation and the keys of `refresh` and `transform`.
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels, integers [N].
      target: the class that the targets are to be taken for.
      targets: the test images, with their true labels.
      base: the class whose images become poisons; default `target`. The original uses a third class.
      count: how many poisons; or
      fraction: the same as a share of all N images.
      epsilon: bound of every value, units of [0, 1]; holds in stored 8-bit images.
      unroll: K.
      inner_rate: of the unrolled steps: the victim's rate at the end of its schedule.
      criterion: "xent", "cw", "cw2", of the targets.
      depths: "last" depth only, or "mean" over all of them.
      clean_count: clean training images, drawn anew for each inner step, that train beside the poisons.
      later_poisons: whether inner steps after the first one see the poisons; False, as in the original, they see
        clean images only (`clean_count` above 0), so that no gradient enters there.
      steps: of the crafting.
      restarts: random starts in one program; the lowest last objective is kept.
      learning_rate: units of [0, 1].
      decay: divide it by 10 after 37.5 %, 62.5 % and 87.6 % of the steps.
      optimizer: "sign_then_adam" or "adam".
      refresh: `(applies, members, step, key) -> (apply, params)`, called between crafting steps with a tuple of
        callables and one of params; the objective then follows a training trajectory. Running statistics belong to
        `apply`. Shapes must stay; new arrays in apply or params do not recompile.
      refresh_every: crafting steps between its calls.
      augment: differentiable augmentation of the poisons, keys [B] and images, or None.
      transform: keys [B] and poisoned images to images, through which the gradient goes; makes the attack adaptive.
      transform_draws: draws of purifier and augmentation over which the inner loss is averaged.

    Returns:
      The poison: labels kept, `targets` carried.

    Raises:
      ValueError: unknown names, `epsilon` outside [1/255, 1], an inner step without images, targets whose label
        already is `target`, more poisons than images of the class, or an objective that is not finite.

    Warning: the original also bends the colours of each image smoothly; this function keeps to the bound epsilon.
    """
    levels(epsilon)
    check_settings(steps, restarts, learning_rate, optimizer)
    check_targets(images, labels, target, targets)
    applies, members = ensemble(apply, params)
    check_outputs(applies, members, images.shape[1:], target)
    check_criterion(criterion)
    if criterion == "unxent":
        raise ValueError("criterion is 'unxent'; training steps are to reach the target class: known: xent, cw, cw2")
    base = target if base is None else base
    index = choose_base(named(key, "choice"), labels, base, count, fraction)
    others = np.setdiff1d(np.arange(len(labels)), index)
    if not 0 <= clean_count <= len(others):
        raise ValueError(f"clean_count is {clean_count}; there are {len(others)} clean images")
    if refresh_every < 1 or not inner_rate > 0:
        raise ValueError(f"refresh_every is {refresh_every} and inner_rate is {inner_rate}; both must be above 0")
    objective = Unrolled(
        applies,
        members,
        jnp.asarray(targets.images),
        jnp.full(len(targets), target, jnp.int32),
        View(as_operand(transform), as_operand(augment)),
        jnp.asarray(images[others]) if clean_count else None,
        jnp.asarray(labels[others], jnp.int32) if clean_count else None,
        jnp.float32(inner_rate),
        unroll,
        criterion,
        depths,
        clean_count,
        later_poisons,
        transform_draws,
    )
    crafting = make_crafting(images, labels, index, key, epsilon, learning_rate, steps, decay, optimizer)
    state, values = _crafted(objective, crafting, restarts, refresh, refresh_every, named(key, "refresh"))
    how = {
        "attack": "metapoison",
        "base": int(base),
        "epsilon": float(epsilon),
        "unroll": unroll,
        "inner_rate": float(inner_rate),
        "criterion": criterion,
        "depths": depths,
        "clean_count": clean_count,
        "later_poisons": later_poisons,
        "members": len(members),
        "learning_rate": float(learning_rate),
        "refreshed": refresh is not None,
        "refresh_every": refresh_every,
        "augmented": augment is not None,
        "adaptive": transform is not None,
        "transform_draws": transform_draws,
    }
    return crafted_poison(crafting, state, values, target=target, targets=targets, how=how)


def _crafted(objective, crafting, restarts, refresh, refresh_every, key):
    """All steps; with `refresh` in pieces, between which the members move on."""
    state = start(crafting, restarts)
    if refresh is None:
        return advance(objective, crafting, state, crafting.steps)
    pieces = []
    for first in range(0, crafting.steps, refresh_every):
        if first:
            fresh = refresh(objective.applies, objective.members, first, jax.random.fold_in(key, first))
            objective = objective.with_surrogate(*replaced(fresh, objective.members, "refresh"))
        state, values = advance(objective, crafting, state, min(refresh_every, crafting.steps - first))
        pieces.append(values)
    return state, np.concatenate(pieces)
