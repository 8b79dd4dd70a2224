"""Witches' Brew: poisons whose training gradient points where a target's misclassification points."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Integer, Key
import numpy as np

from jaxpurify import loop
from jaxpurify.attack.budget import levels
from jaxpurify.attack.choose import StoredLabels
from jaxpurify.attack.crafting import check_settings, crafted_poison, start
from jaxpurify.attack.matching import Passenger, check_criterion
from jaxpurify.attack.matching_objective import Matching, check_batches, ensemble, target_gradients
from jaxpurify.attack.side_by_side import advance_each
from jaxpurify.attack.surrogate import Apply
from jaxpurify.attack.targeted import Aim, aims, check_base, check_outputs, choose_base, make_crafting, split_over
from jaxpurify.attack.view import View
from jaxpurify.data.image import to_float
from jaxpurify.data.poison import Poison, Targets
from jaxpurify.random import named
from jaxpurify.struct import as_operand
from jaxpurify.types import Purifier, PyTree, StoredImages


def gradient_matching(
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
    epsilon: float = 16 / 255,
    loss: str | Passenger = "similarity",
    criterion: str = "xent",
    steps: int = 250,
    restarts: int = 8,
    restarts_together: int | None = None,
    learning_rate: float = 0.025,
    decay: bool = True,
    optimizer: str = "sign_then_adam",
    augment: Any = None,
    match: str = "all",
    micro_batch: int | None = None,
    engine: str = "two-pass",
    per_target: bool = False,
    loss_weight: float = 0.0,
    hidden: Apply | tuple | list | None = None,
    hidden_weight: float = 1.0,
    private_clip: float | None = None,
    private_noise: float = 0.0,
    transform: Purifier | None = None,
    transform_draws: int = 1,
    mesh: Mesh | None = None,
    progress: loop.Report | None = None,
) -> Poison | list[Poison]:
    """Gradient matching (Witches' Brew, arXiv:2009.02276): clean-label poisons for chosen test images.

    minimise over |δ|∞ <= epsilon:  Σ over members m of Φ(p_m(δ); t_m),
    p_m = ∇_θ mean CE(f_m(augment(x + δ)), y),  t_m = ∇_θ criterion(f_m(x_target), target), by Adam on the sign of
    the gradient, from `restarts` random starts in one program; the start with the lowest last loss is kept.

    Args:
      apply: the surrogate, `(params, images [B, H, W, C] in [0, 1]) -> logits [B, classes]`; a list with one for
        each member where members differ (`networks.partition.split_trainable` gives both).
      params: what the victim trains (the gradients are taken over all of its leaves); a tuple or list is an ensemble.
      key: draws poisons, starts, augmentation, purification and private noise.
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels, integers [N].
      target: the class that the targets are to be taken for; one a target image, if `separately`.
      targets: the test images, with their true labels.
      separately: one poison for each target image, as crafted alone with the key `fold_in(key, g)` for target g.
      targets_together: how many of those side by side in one program; memory grows with it. None: one on CPU, where
        the others follow in the same program, all of them elsewhere.
      base: the class whose images become poisons, or `"any"`; default `target` (for `"unxent"` the targets' own class).
      count: how many poisons; or
      fraction: the same as a share of all N images (published: 0.01); or
      bases: the positions of the images that become poisons, of class `base`.
      epsilon: bound of every value, units of [0, 1]; holds in stored 8-bit images.
      loss: Φ, a name from `attack.matching.PASSENGERS` or a `Passenger` with its options.
      criterion: of the targets: "xent", "cw", "cw2", or "unxent" (away from their true labels: self-betrayal,
        which has no use for `target`).
      steps: of the optimiser.
      restarts: random starts, all in one program; this process's devices share them where they can do so evenly.
      restarts_together: how many of them side by side on a device, a divisor of `restarts`; memory grows with it.
        None: one on CPU, where more take longer to compile and no less time, all of them elsewhere.
      learning_rate: units of [0, 1]: 0.025 is the published 0.1 standard deviations. The published code multiplies
        it by (mini-batch size / 512) / members; here it is used as it is.
      decay: divide it by 10 after 37.5 %, 62.5 % and 87.6 % of the steps.
      optimizer: "sign_then_adam" (published) or "adam".
      augment: differentiable augmentation, keys [B] and images to images (published:
        `data.augment.ContinuousShift`), or None.
      match: "all": p is the gradient over all poisons, whatever `micro_batch`. "minibatch": as published, every
        mini-batch of `micro_batch` rows is matched on its own and the losses averaged.
      micro_batch: rows in memory at a time; None: all.
      engine: "two-pass" needs rows that do not see each other (evaluation mode); "reverse" does not.
      per_target: sum one loss a target instead of matching the gradient of their mean.
      loss_weight: λ of an additional λ · (poisons' training loss) ("centreg").
      hidden: `(params, images) -> features`, or a list with one a member: adds `hidden_weight` times the mean squared
        distance of the features of poisons and of their clean images, to evade filters. With `match="minibatch"` it
        is the mean over each mini-batch.
      private_clip, private_noise: match the gradient as a private trainer sees it, clipped to this norm and with
        noise N(0, (clip · noise)²); None: neither.
      transform: keys [B] and poisoned images to images, through which the gradient goes, before `augment`; a
        purifier here makes the attack adaptive. Targets are not purified: they are met after training.
      transform_draws: draws of purifier and augmentation over which the poisons' loss is averaged.
      mesh: split the poisons over its devices; their number must be a multiple of the devices. The same poisons as on
        one device up to the order of sums, which the gradient's sign can turn into whole steps.
      progress: called with (finished steps, all steps), those of all targets added up.

    Returns:
      The poison, or a list of them if `separately`: labels kept, `targets` carried, `how` with the matching losses of
      all restarts.

    Raises:
      ValueError: unknown names, `epsilon` outside [1/255, 1], targets whose label already is `target`, images of
        another shape, `base` the targets' own class, more poisons than images of the class, another number of `apply`
        or `hidden` than of members, options that would do nothing, `mesh` together with `separately`, or an objective
        that is not finite.
    """
    levels(epsilon)
    check_settings(steps, restarts, learning_rate, optimizer)
    _check_privacy(private_clip, private_noise)
    check_batches(match, micro_batch, engine)
    if restarts_together is not None and (restarts_together < 1 or restarts % restarts_together):
        raise ValueError(f"restarts_together is {restarts_together}; it must divide the {restarts} restarts")
    _check_separately(separately, targets_together, mesh)
    applies, members = ensemble(apply, params)
    check_criterion(criterion)
    passenger = loss if isinstance(loss, Passenger) else Passenger(loss)
    common = Matching(
        applies,
        members,
        (),
        passenger,
        View(as_operand(transform), as_operand(augment)),
        hidden=None if hidden is None else _one_each(hidden, len(members)),
        hidden_weight=jnp.float32(hidden_weight),
        private_clip=None if private_clip is None else jnp.float32(private_clip),
        private_noise=jnp.float32(private_noise),
        loss_weight=jnp.float32(loss_weight),
        draws=transform_draws,
        match=match,
        micro_batch=micro_batch,
        engine=engine,
    )
    how_to = (epsilon, learning_rate, steps, decay, optimizer, restarts_together or 0)
    aimed = aims(images, labels, key, target, targets, separately)
    classes = _classes(aimed, base, criterion)
    craftings = []
    for aim, of_base in zip(aimed, classes, strict=True):
        check_outputs(applies, members, images.shape[1:], aim.target)
        if criterion != "unxent":
            check_base(of_base, aim.targets)
        index = choose_base(named(aim.key, "choice"), labels, of_base, count, fraction, bases)
        craftings.append(make_crafting(images, labels, index, aim.key, *how_to))
    states = [start(crafting, restarts) for crafting in craftings]

    def prepare(number):
        return _aimed(common, aimed[number], criterion, per_target), craftings[number]

    if mesh is not None:
        apart = engine == "two-pass" and match == "all"
        objective, craftings[0], states[0] = split_over(mesh, *prepare(0), states[0], apart=apart)
        states, values = advance_each(lambda _: (objective, craftings[0]), states, steps, progress=progress)
    else:
        states, values = advance_each(prepare, states, steps, targets_together, progress)
    how = {
        "attack": "gradient_matching",
        "epsilon": float(epsilon),
        "loss": passenger.name,
        "criterion": criterion,
        "members": len(members),
        "learning_rate": float(learning_rate),
        "augmented": augment is not None,
        "match": match,
        "micro_batch": micro_batch,
        "engine": engine,
        "per_target": per_target,
        "norm_weight": float(passenger.norm_weight),
        "repel_weight": float(passenger.repel_weight),
        "repel": passenger.repel,
        "loss_weight": float(loss_weight),
        "hidden_weight": float(hidden_weight) if hidden is not None else 0.0,
        "private_clip": None if private_clip is None else float(private_clip),
        "private_noise": float(private_noise),
        "adaptive": transform is not None,
        "transform_draws": transform_draws,
    }
    poisons = [
        crafted_poison(crafting, state, losses, target=aim.target, targets=aim.targets, how=how | {"base": of_base})
        for crafting, state, losses, aim, of_base in zip(craftings, states, values, aimed, classes, strict=True)
    ]
    return poisons if separately else poisons[0]


def _check_separately(separately, targets_together, mesh):
    if targets_together is not None and not separately:
        raise ValueError(f"targets_together is {targets_together}; it goes with separately")
    if separately and mesh is not None:
        raise ValueError("mesh splits the poisons of one target; with separately, craft target by target")


def _classes(aimed: list[Aim], base: int | str | None, criterion: str) -> list[int | str]:
    """Of each aim the class whose images are poisoned: `base`, or the class that the criterion moves targets to."""
    if base is not None:
        return [base if isinstance(base, str) else int(base)] * len(aimed)
    if criterion != "unxent":
        return [aim.target for aim in aimed]
    if any(len(set(aim.targets.labels.tolist())) > 1 for aim in aimed):
        raise ValueError(
            "targets are of several classes; with criterion 'unxent' base must say of which the poisons are"
        )
    return [int(aim.targets.labels[0]) for aim in aimed]


def _check_privacy(clip, noise):
    if clip is None and noise:
        raise ValueError(f"private_noise is {noise}; it goes with private_clip, the norm that it is a share of")
    if clip is not None and (not clip > 0 or noise < 0):
        raise ValueError(f"private_clip is {clip} and private_noise is {noise}; above 0, and 0 or more")


def _aimed(common: Matching, aim: Aim, criterion: str, per_target: bool) -> Matching:
    """`common` with the gradients that training on the poisons is to have."""
    surrogate, passenger = (common.applies, common.members), common.passenger
    seen, true_labels = to_float(jnp.asarray(aim.targets.images)), jnp.asarray(aim.targets.labels, jnp.int32)
    wanted = true_labels if criterion == "unxent" else jnp.full(len(aim.targets), aim.target, jnp.int32)
    targets = target_gradients(*surrogate, seen, wanted, criterion=criterion, per_target=per_target)
    clean = None
    if passenger.repel == "intended" and float(passenger.repel_weight):
        clean = target_gradients(*surrogate, seen, true_labels, per_target=per_target)
    return dataclasses.replace(common, targets=targets, clean=clean)


def _one_each(hidden, count):
    """One `hidden` for each member, as operands; a single one serves all."""
    each = tuple(hidden) if isinstance(hidden, tuple | list) else (hidden,) * count
    if len(each) != count:
        raise ValueError(f"hidden has {len(each)} functions for {count} members of the ensemble")
    return tuple(as_operand(function) for function in each)
