"""Label-consistent backdoor: images made hard to learn from, so that a victim reads the trigger instead."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key, UInt8
import numpy as np
import optax

from jaxpurify import loop
from jaxpurify.attack.badnets import patch_trigger
from jaxpurify.attack.budget import add_levels, apply_trigger, levels, to_levels
from jaxpurify.attack.choose import StoredLabels, check_dataset, check_draws, check_target
from jaxpurify.attack.signed_adam import project
from jaxpurify.attack.surrogate import Apply, compiled_logits
from jaxpurify.attack.targeted import check_outputs, choose_base
from jaxpurify.data.image import to_float
from jaxpurify.data.poison import Poison
from jaxpurify.random import fold, image_keys, named, uniform
from jaxpurify.struct import as_operand, static, struct
from jaxpurify.types import Keys, Purifier, PyTree, StoredImages


def clean_label_backdoor(
    apply: Apply,
    params: PyTree,
    key: Key[Array, ""],
    images: StoredImages,
    labels: StoredLabels,
    *,
    target: int,
    count: int | None = None,
    fraction: float | None = None,
    bases: Integer[np.ndarray, "_"] | None = None,
    epsilon: float = 8 / 255,
    steps: int = 20,
    step_size: float = 2 / 255,
    trigger: Callable[[Any], Any] | None = None,
    pattern: str = "random",
    size: int = 5,
    corner: str = "bottom-right",
    clamp_trigger: bool = True,
    batch_size: int = 500,
    transform: Purifier | None = None,
    transform_draws: int = 1,
    progress: loop.Report | None = None,
) -> Poison:
    """Label-consistent backdoor (Turner et al., arXiv:1912.02771; CLBD of the poisoning benchmark, arXiv:2006.12557).

    Images of the target class are moved away from it on a robust network by projected gradient ascent of the
    cross-entropy, x <- Π(x + step_size · sign ∇ CE(f(x), target)), then carry the trigger. Labels are kept.

    Args:
      apply: the surrogate, `(member, images [B, H, W, C] in [0, 1]) -> logits [B, classes]`; published: an
        adversarially trained network.
      params: its weights, or a tuple or list of members, over which the cross-entropy is averaged.
      key: draws the poisons, the random start, a `"random"` patch and the keys of `transform`; consumed.
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels, integers [N].
      target: the class that the trigger is to mean.
      count: how many of its images are poisoned; or
      fraction: the same as a share of all N images; or
      bases: the positions of the images that become poisons, of class `target`.
      epsilon: bound of the ascent (and, with `clamp_trigger`, of the poison), units of [0, 1].
      steps, step_size: of the ascent from a uniformly random start; 0 steps leave out start and ascent.
      trigger: any `images -> images` in [0, 1]; None: the patch of `badnets.patch_trigger` that `pattern`, `size` and
        `corner` describe. The benchmark's is 5 pixels (8 for Tiny ImageNet).
      clamp_trigger: True: poisons end within epsilon of the image, trigger included (the benchmark). False: the
        trigger is pasted at full strength (the paper).
      batch_size: images at a time.
      transform: keys [B] and images to images, between image and surrogate (adaptive), averaged over
        `transform_draws` draws a step.
      progress: called with (finished steps, all steps), those of all poisons added up.

    Returns:
      The poison with its test-time trigger at full strength; `how` holds the mean cross-entropy of the stored images
      without and with the change, trigger not counted (`clean_objective`, `objective`).

    Raises:
      ValueError: `epsilon` outside [1/255, 1], an unknown target or one that the surrogate has no output for, more
        poisons than images of the class, or counts out of range.

    Warning: the benchmark clips the trigger in the poisons to ±epsilon but not at test time, and its mask of the
    patch indexes channels instead of columns; the second is not reproduced here.
    """
    check_dataset(images, labels)
    check_target(target, labels)
    levels(epsilon)
    check_draws(transform_draws, transform)
    if steps < 0 or batch_size < 1 or not step_size > 0:
        raise ValueError(
            f"steps={steps}, step_size={step_size}, batch_size={batch_size}; at least 0, above 0, and at least 1"
        )
    index = choose_base(named(key, "choice"), labels, target, count, fraction, bases)
    number = len(index)
    apply = as_operand(apply)
    members = tuple(params) if isinstance(params, tuple | list) else (params,)
    check_outputs((apply,) * len(members), members, images.shape[1:], target)
    described: dict[str, Any] = {"pattern": type(trigger).__name__}
    if trigger is None:
        shape = (images.shape[1], images.shape[2], images.shape[3])
        trigger = patch_trigger(shape, named(key, "pattern"), pattern=pattern, size=size, corner=corner)
        described = {"pattern": pattern, "size": size, "corner": corner}

    def problem_of(rows):
        return _Problem(
            apply=apply,
            members=members,
            transform=as_operand(transform),
            keys=image_keys(key, jnp.asarray(index[rows])),
            images=jnp.asarray(images[index[rows]]),
            label=jnp.int32(target),
            epsilon=jnp.float32(epsilon),
            step_size=jnp.float32(step_size),
            transform_draws=transform_draws,
        )

    moved, clean, objective = _ascend(problem_of, images[index], epsilon, steps, batch_size, progress)
    poisons = apply_trigger(trigger, moved)
    if clamp_trigger:
        limit, base = levels(epsilon), images[index].astype(np.int16)
        poisons = np.clip(poisons, base - limit, base + limit).astype(np.uint8)
    return Poison(
        images=poisons,
        labels=np.full(number, target, np.int32),
        index=index,
        target=target,
        trigger=trigger,
        how={
            "attack": "clean_label_backdoor",
            "labels_changed": False,
            "count": number,
            "norm": "linf" if clamp_trigger else "linf and patch",
            "epsilon": float(epsilon),
            "steps": steps,
            "step_size": float(step_size),
            "clamp_trigger": clamp_trigger,
            "members": len(members),
            "adaptive": transform is not None,
            "transform_draws": transform_draws,
            **described,
            "clean_objective": clean,
            "objective": objective,
        },
    )


def _ascend(problem_of, stored, epsilon, steps, batch_size, progress) -> tuple[np.ndarray, float, float]:
    """The moved images, 8-bit, and the mean cross-entropy of the stored ones and of these."""
    moved, losses = stored.copy(), []
    for begin in range(0, len(stored), batch_size):
        rows = slice(begin, begin + batch_size)
        problem = problem_of(rows)
        whole = not loop.has_loops(problem.transform)
        measure = _compiled_losses if whole else _losses
        delta = np.zeros(1, np.float32)
        if steps:
            report = loop.part_of(progress, begin * steps, len(stored) * steps, len(problem.images))
            delta = np.asarray(loop.repeat(_step, _start(problem), steps, problem, progress=report, whole=whole))
        if not np.isfinite(delta).all():
            raise ValueError("the surrogate's gradient is not finite on the poisons; its weights are at fault")
        moved[rows] = add_levels(stored[rows], to_levels(np.broadcast_to(delta, stored[rows].shape), epsilon))
        losses.append([np.asarray(measure(problem, jnp.asarray(part[rows]))) for part in (stored, moved)])
    clean, objective = (float(np.concatenate(part).mean()) for part in zip(*losses, strict=True))
    if not np.isfinite(objective):
        raise ValueError(f"the surrogate's loss is {objective} on the poisons; its weights are at fault")
    return moved, clean, objective


@struct
class _Problem:
    apply: PyTree
    members: tuple
    transform: PyTree
    keys: Keys
    images: UInt8[Array, "poisons height width channels"]
    label: Array
    epsilon: Array
    step_size: Array
    transform_draws: int = static()


@jax.jit
def _start(problem: _Problem) -> Float[Array, "poisons height width channels"]:
    """Uniform in ±epsilon, within the image box."""
    images = to_float(problem.images)
    keys = jax.vmap(lambda key: named(key, "start"))(problem.keys)
    noise = (2 * uniform(keys, images.shape[1:]) - 1) * problem.epsilon
    return project(noise, images, problem.epsilon)


def _step(delta, index, problem):
    """One step of signed gradient ascent for every image by itself."""
    images = to_float(problem.images)
    gradient = jax.grad(lambda delta: _cross_entropy(problem, images + delta, index).sum())(delta)
    return project(delta + problem.step_size * jnp.sign(gradient), images, problem.epsilon)


def _losses(problem, stored):
    return _cross_entropy(problem, to_float(stored), jnp.uint32(2**32 - 1))


_compiled_losses = jax.jit(_losses)


def _cross_entropy(problem, images, index):
    """Cross-entropy [P] at the target class, averaged over members and draws of the transform."""
    total = jnp.zeros(len(images))
    for draw in range(problem.transform_draws):
        seen = images
        if problem.transform is not None:
            seen = problem.transform(fold(fold(problem.keys, index), draw), images)
        for member in problem.members:
            logits = compiled_logits(problem.apply, member, seen)
            wanted = jnp.full(logits.shape[:1], problem.label)
            total = total + optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    return total / (problem.transform_draws * len(problem.members))
