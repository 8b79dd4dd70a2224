"""MetaPoison: poisons through the training steps that a victim will take on them."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer, Key
import numpy as np

from jaxpurify import loop
from jaxpurify.attack.budget import levels
from jaxpurify.attack.choose import StoredLabels
from jaxpurify.attack.crafting import Crafting, check_settings, crafted_poison, start
from jaxpurify.attack.matching import check_criterion
from jaxpurify.attack.matching_objective import ensemble, replaced
from jaxpurify.attack.side_by_side import advance_each
from jaxpurify.attack.surrogate import Apply
from jaxpurify.attack.targeted import Aim, aims, check_base, check_outputs, choose_base, make_crafting
from jaxpurify.attack.unrolled import Unrolled
from jaxpurify.attack.view import View
from jaxpurify.data.poison import Poison, Targets
from jaxpurify.random import named
from jaxpurify.struct import as_operand
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
    target: int | Sequence[int],
    targets: Targets,
    separately: bool = False,
    targets_together: int | None = None,
    base: int | str | None = None,
    count: int | None = None,
    fraction: float | None = None,
    bases: Integer[np.ndarray, "_"] | None = None,
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
    progress: loop.Report | None = None,
) -> Poison | list[Poison]:
    """MetaPoison (arXiv:2004.00225): minimises the targets' loss after K unrolled steps of training on the poisons.

    θ_0 = a member's parameters, θ_{k+1} = θ_k - inner_rate · ∇ mean CE(f(x + δ; θ_k), y), and the objective is
    criterion(f(x_target; θ_K), target), or its mean over depths 1 … K, summed over the members.

    Two published forms, and the defaults are a short one between them. The framework's (as in arXiv:2009.02276's
    code): unrolled steps on the poisons alone at the rate with which its victim ends, `inner_rate=0.0001`, criterion
    "xent", `steps=250`, `restarts=8`, `epsilon=16/255`. The original's: `depths="mean"`, criterion "cw2",
    `clean_count=125`, `later_poisons=False`, `optimizer="adam"` with `learning_rate=200/255`, an ensemble of 24 members
    at different epochs (in grids `--surrogates 24 --stagger firstn`), and `refresh` that trains each on by an epoch of
    clean data or starts it afresh: the caller's work, which grids do not do. It starts at uniform numbers and drops its
    rate at steps 20 and 40 of 60 only; here both are as in `gradient_matching`.

    Args:
      apply: the surrogate, `(params, images) -> logits`, in evaluation mode; a list with one a member where members
        differ.
      params: what training moves; a tuple or list is an ensemble.
      key: draws poisons, starts, clean images, augmentation and the keys of `refresh` and `transform`.
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels, integers [N].
      target: the class that the targets are to be taken for; one a target image, if `separately`.
      targets: the test images, with their true labels.
      separately: one poison for each target image, with the key `fold_in(key, g)` for target g: as crafted alone, but
        that all of them follow the same `refresh`.
      targets_together: how many of those side by side in one program; memory grows with it. None: one on CPU, where
        the others follow in the same program, all of them elsewhere.
      base: the class whose images become poisons, or `"any"`; default `target`. The original uses a third class.
      count: how many poisons; or
      fraction: the same as a share of all N images; or
      bases: the positions of the images that become poisons, of class `base`.
      epsilon: bound of every value, units of [0, 1]; holds in stored 8-bit images.
      unroll: K.
      inner_rate: of the unrolled steps: the victim's rate where it is to be met; the original begins with 0.1.
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
      progress: called with (finished steps, all steps), those of all targets added up.

    Returns:
      The poison, or a list of them if `separately`: labels kept, `targets` carried.

    Raises:
      ValueError: unknown names, `epsilon` outside [1/255, 1], an inner step without images, targets whose label
        already is `target` or `base`, more poisons than images of the class, or an objective that is not finite.

    Warning: the original also bends the colours of each image smoothly; this function keeps to the bound epsilon. It
    normalises by the statistics of batches that poisons, clean images and targets share, and the framework has a form
    with momentum; here targets, poisons and clean images go through `apply` apart from each other, without momentum.
    """
    levels(epsilon)
    check_settings(steps, restarts, learning_rate, optimizer)
    applies, members = ensemble(apply, params)
    check_criterion(criterion)
    if criterion == "unxent":
        raise ValueError("criterion is 'unxent'; training steps are to reach the target class: known: xent, cw, cw2")
    if targets_together is not None and not separately:
        raise ValueError(f"targets_together is {targets_together}; it goes with separately")
    if refresh_every < 1 or not inner_rate > 0:
        raise ValueError(f"refresh_every is {refresh_every} and inner_rate is {inner_rate}; both must be above 0")
    common = Unrolled(
        applies,
        members,
        jnp.asarray(targets.images),
        jnp.zeros(len(targets), jnp.int32),
        View(as_operand(transform), as_operand(augment)),
        inner_rate=jnp.float32(inner_rate),
        unroll=unroll,
        criterion=criterion,
        depths=depths,
        clean_count=clean_count,
        later_poisons=later_poisons,
        draws=transform_draws,
    )
    if clean_count:  # on the device once, for all targets
        common = dataclasses.replace(common, clean=jnp.asarray(images), clean_labels=jnp.asarray(labels, jnp.int32))
    base = base if base is None or isinstance(base, str) else int(base)
    craftings, aimed = [], aims(images, labels, key, target, targets, separately)
    for aim in aimed:
        check_outputs(applies, members, images.shape[1:], aim.target)
        of_base = aim.target if base is None else base
        check_base(of_base, aim.targets)
        index = choose_base(named(aim.key, "choice"), labels, of_base, count, fraction, bases)
        if not 0 <= clean_count <= len(labels) - len(index):
            raise ValueError(f"clean_count is {clean_count}; there are {len(labels) - len(index)} clean images")
        crafting = make_crafting(images, labels, index, aim.key, epsilon, learning_rate, steps, decay, optimizer)
        craftings.append(crafting)
    every = steps if refresh is None else refresh_every
    states = [start(crafting, restarts) for crafting in craftings]
    pieces = []
    for first in range(0, steps, every):
        if first and refresh is not None:
            fresh = refresh(common.applies, common.members, first, jax.random.fold_in(named(key, "refresh"), first))
            common = common.with_surrogate(*replaced(fresh, members, "refresh"))

        def prepare(number, common=common):
            return _aimed(common, aimed[number], len(labels), craftings[number]), craftings[number]

        report = loop.part_of(progress, len(aimed) * first, len(aimed) * steps)
        states, values = advance_each(prepare, states, min(every, steps - first), targets_together, report)
        pieces.append(values)
    values = [np.concatenate(each) for each in zip(*pieces, strict=True)]
    how = {
        "attack": "metapoison",
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
    poisons = []
    for crafting, state, losses, aim in zip(craftings, states, values, aimed, strict=True):
        own = how | {"base": aim.target if base is None else base}
        poisons.append(crafted_poison(crafting, state, losses, target=aim.target, targets=aim.targets, how=own))
    return poisons if separately else poisons[0]


def _aimed(common: Unrolled, aim: Aim, count: int, crafting: Crafting) -> Unrolled:
    """`common` for the targets of one aim; of the `count` training images all but its poisons are clean."""
    wanted = jnp.full(len(aim.targets), aim.target, jnp.int32)
    aimed = dataclasses.replace(common, targets=jnp.asarray(aim.targets.images), wanted=wanted)
    if not common.clean_count:
        return aimed
    others = np.setdiff1d(np.arange(count), np.asarray(crafting.index))
    return dataclasses.replace(aimed, others=jnp.asarray(others, jnp.int32))
