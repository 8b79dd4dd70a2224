"""Narcissus: one optimised trigger that looks, to a surrogate, more like the target class than the class does."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8
import numpy as np
import optax

from jaxpurify import loop
from jaxpurify.attack.budget import add_levels, levels, to_levels
from jaxpurify.attack.choose import (
    StoredLabels,
    check_dataset,
    check_draws,
    check_target,
    choose,
    poison_count,
    positions,
)
from jaxpurify.attack.matching_objective import ensemble
from jaxpurify.attack.surrogate import Apply, class_count, compiled_logits, triggered
from jaxpurify.attack.warm_up import class_batch, warm_up
from jaxpurify.data.image import to_float
from jaxpurify.data.poison import AdditiveTrigger, Poison
from jaxpurify.random import image_keys, named
from jaxpurify.struct import as_operand, static, struct
from jaxpurify.types import Purifier, PyTree, StoredImages

OPTIMIZERS = {"adam": optax.adam, "radam": optax.radam}


def narcissus(
    apply: Apply | tuple | list,
    params: PyTree,
    key: Key[Array, ""],
    images: StoredImages,
    labels: StoredLabels,
    *,
    target: int,
    count: int | None = None,
    fraction: float | None = None,
    epsilon: float = 16 / 255,
    surrogate_label: int | None = None,
    warmup_epochs: int = 0,
    warmup_rate: float = 0.1,
    steps: int = 1000,
    learning_rate: float = 0.005,
    batch_size: int = 350,
    optimizer: str = "radam",
    choice: str = "last",
    saturate: bool = False,
    scale: float = 1.0,
    transform: Purifier | None = None,
    transform_draws: int = 1,
    progress: loop.Report | None = None,
) -> Poison:
    """Narcissus (arXiv:2204.05255): a universal clean-label trigger, added to a few images of the target class.

    delta = argmin over |delta|∞ <= epsilon of the mean over the target class of
    CE(f(clip(x + delta, 0, 1)), surrogate_label), by Adam or RAdam from delta = 0.

    Args:
      apply: the surrogate, `(params, images [B, H, W, C] in [0, 1]) -> logits [B, classes]`, in evaluation mode; a list
        with one for each member where members differ.
      params: its weights (what training moves of them, if it is warmed up), or a tuple or list of members, over which
        the cross-entropy is averaged; new values do not recompile.
      key: draws the order of the batches, of both stages, the keys of `transform` and, for `choice="random"`, the
        poisons.
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels, integers [N].
      target: the class whose images are used, and that the trigger is to mean.
      count: how many of its images are poisoned; or
      fraction: the same as a share of all N images.
      epsilon: bound of every value, units of [0, 1]; holds in stored 8-bit images.
      surrogate_label: the surrogate's output to maximise; default `target`. Set it where the surrogate has an
        output of its own for the target class (200 for Tiny-ImageNet's classes and one more).
      warmup_epochs: passes over the target class alone, labelled `surrogate_label`, that train the surrogate before the
        trigger is optimised on it (published: 5); normalisation stays as `apply` has it, images are not augmented.
      warmup_rate: learning rate of RAdam in them.
      steps: gradient steps. Published: 1000 passes over the class.
      learning_rate: of the optimiser, units of [0, 1] (the published 0.01 in [-1, 1] units is 0.005).
      batch_size: images a step, reshuffled every pass; the whole class where it has fewer.
      optimizer: `"radam"` as published (it hardly moves in its first 20 steps), or `"adam"`.
      choice: which images of the class carry the trigger: `"last"` in index order (PureGen,
        arXiv:2405.18627) or `"random"`.
      saturate: False: delta is projected onto the budget after every step. True: as published, it is clipped
        inside the objective only, so that a value outside the budget has no gradient and stays at the bound.
      scale: strength of the test-time trigger: 1 in PureGen, 3 in the original.
      transform: keys [B] and triggered images to images, through which the gradient goes; a purifier here
        makes the attack adaptive.
      transform_draws: draws of `transform` over which the objective is averaged in every step.
      progress: called with (finished steps, all steps).

    Returns:
      The poison: labels kept, `trigger` adds the same 8-bit delta, `how` holds the
      objective over the target class without it (`clean_loss`) and with it (`triggered_loss`).

    Raises:
      ValueError: `epsilon` outside [1/255, 1], an unknown target, a `surrogate_label` that the surrogate does
        not have, more poisons than images of the class, or an objective that stopped being finite.

    Warning: the published code leaves the surrogate's batch normalisation in train mode while it optimises;
    here `apply` is whatever it is, normally frozen. It also trains the target class as an extra class and then
    warms up and optimises for another output (the class's own index), which only the warm-up makes that class's:
    `surrogate_label=target, warmup_epochs=5` is that, the index of the extra class the consistent choice.
    """
    check_dataset(images, labels)
    check_target(target, labels)
    levels(epsilon)
    check_draws(transform_draws, transform)
    _check_settings(optimizer, steps, batch_size, learning_rate, scale)
    if warmup_epochs < 0 or not warmup_rate > 0:
        raise ValueError(f"warmup_epochs is {warmup_epochs} and warmup_rate is {warmup_rate}; at least 0, and above 0")
    number = poison_count(count, fraction, len(labels))
    of_class = positions(labels == target)
    index = choose(named(key, "choice"), of_class, number, choice=choice, what=f"images of class {target}")
    label = target if surrogate_label is None else surrogate_label
    applies, members = ensemble(apply, params)
    _check_label(applies, members, images.shape[1:], label)
    stored, batch = jnp.asarray(images[of_class]), min(batch_size, len(of_class))
    settings = {"epochs": warmup_epochs, "learning_rate": warmup_rate, "batch_size": batch}
    members = tuple(
        warm_up(each, member, jax.random.fold_in(named(key, "warm-up"), place), stored, label, **settings)
        for place, (each, member) in enumerate(zip(applies, members, strict=True))
    )
    problem = _Problem(
        applies=applies,
        members=members,
        transform=as_operand(transform),
        key=named(key, "batches"),
        images=stored,
        label=jnp.int32(label),
        epsilon=jnp.float32(epsilon),
        learning_rate=jnp.float32(learning_rate),
        batch_size=batch,
        optimizer=optimizer,
        saturate=saturate,
        transform_draws=transform_draws,
    )
    change = to_levels(_optimise(problem, steps, progress), epsilon)
    stored_delta = jnp.asarray(change, jnp.float32) / 255
    return Poison(
        images=add_levels(images[index], change),
        labels=np.full(number, target, np.int32),
        index=index,
        target=target,
        trigger=AdditiveTrigger(stored_delta, scale),
        how={
            "attack": "narcissus",
            "labels_changed": False,
            "count": number,
            "norm": "linf",
            "epsilon": float(epsilon),
            "surrogate_label": label,
            "warmup_epochs": warmup_epochs,
            "steps": steps,
            "learning_rate": float(learning_rate),
            "batch_size": batch_size,
            "optimizer": optimizer,
            "choice": choice,
            "saturate": saturate,
            "scale": float(scale),
            "members": len(members),
            "adaptive": transform is not None,
            "transform_draws": transform_draws,
            "clean_loss": _class_loss(problem, jnp.zeros_like(stored_delta)),
            "triggered_loss": _class_loss(problem, stored_delta),
        },
    )


def _check_settings(optimizer, steps, batch_size, learning_rate, scale):
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is {optimizer!r}; known: {', '.join(OPTIMIZERS)}")
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps is {steps} and batch_size is {batch_size}; both must be at least 1")
    if not (0 < learning_rate < math.inf and 0 < scale < math.inf):
        raise ValueError(f"learning_rate is {learning_rate} and scale is {scale}; both must be above 0")


def _check_label(applies, members, shape, label):
    for apply, member in zip(applies, members, strict=True):
        classes = class_count(apply, member, shape)
        if not 0 <= label < classes:
            raise ValueError(f"surrogate_label is {label}; the surrogate's outputs are 0 … {classes - 1}")


@struct
class _Problem:
    applies: tuple
    members: tuple
    transform: PyTree
    key: Key[Array, ""]
    images: UInt8[Array, "count height width channels"]
    label: Array
    epsilon: Array
    learning_rate: Array
    batch_size: int = static()
    optimizer: str = static()
    saturate: bool = static()
    transform_draws: int = static()


def _optimise(
    problem: _Problem, steps: int, progress: loop.Report | None
) -> Float[np.ndarray, "height width channels"]:
    """The optimised delta within the budget; raises ValueError if it or the last objective is not finite."""
    delta = jnp.zeros(problem.images.shape[1:])
    state = (delta, _optimizer(problem).init(delta))
    whole = not loop.has_loops(problem.transform)
    (delta, _), losses = loop.scan(_step, state, steps, problem, progress=progress, whole=whole)
    delta, losses = jax.device_get((jnp.clip(delta, -problem.epsilon, problem.epsilon), losses))
    if not math.isfinite(losses[-1]) or not np.isfinite(delta).all():
        first = int(np.argmin(np.isfinite(losses)))
        raise ValueError(f"the surrogate's loss is not finite at step {first} of {steps}; lower learning_rate")
    return delta


def _class_loss(problem: _Problem, delta: Float[Array, "height width channels"]) -> float:
    """The objective at `delta`, averaged over one pass over the target class."""
    steps, whole = len(problem.images) // problem.batch_size, not loop.has_loops(problem.transform)
    _, losses = loop.scan(_measure, delta, steps, problem, whole=whole)
    return float(losses.mean())


def _step(state, index, problem):
    """One step of the optimiser on one batch of the target class; `index` counts steps, not passes."""
    delta, moments = state
    loss, gradient = jax.value_and_grad(_objective)(delta, index, problem)
    updates, moments = _optimizer(problem).update(gradient, moments, delta)
    delta = delta + updates
    if not problem.saturate:
        delta = jnp.clip(delta, -problem.epsilon, problem.epsilon)
    return (delta, moments), loss


def _measure(delta, index, problem):
    return delta, _objective(delta, index, problem)


def _objective(delta, index, problem):
    """The mean cross-entropy of triggered images over members and draws, on the batch that belongs to step `index`."""
    chosen = class_batch(problem.key, len(problem.images), problem.batch_size, index)
    if problem.saturate:
        delta = jnp.clip(delta, -problem.epsilon, problem.epsilon)
    images = triggered(to_float(problem.images[chosen]), delta)
    losses = []
    for draw in range(problem.transform_draws):
        seen = images
        if problem.transform is not None:
            stream = named(problem.key, f"transform {draw}" if draw else "transform")
            seen = problem.transform(image_keys(jax.random.fold_in(stream, index), chosen), images)
        for apply, member in zip(problem.applies, problem.members, strict=True):
            logits = compiled_logits(apply, member, seen)
            wanted = jnp.full(logits.shape[:1], problem.label)
            losses.append(optax.softmax_cross_entropy_with_integer_labels(logits, wanted).mean())
    return sum(losses) / len(losses)


def _optimizer(problem):
    return OPTIMIZERS[problem.optimizer](problem.learning_rate)
