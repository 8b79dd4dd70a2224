"""Hidden-trigger backdoor: clean-looking poisons whose features are those of images that carry the trigger."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, Key
import numpy as np

from jaxpurify import loop
from jaxpurify.attack.badnets import patch_trigger
from jaxpurify.attack.choose import StoredLabels, check_dataset, check_target, positions
from jaxpurify.attack.feature_groups import Group, finish, make_problem
from jaxpurify.attack.feature_steps import check_finite, descent_step, initial_state, network_features, start_at
from jaxpurify.attack.surrogate import Apply
from jaxpurify.attack.targeted import choose_base
from jaxpurify.data.image import to_float
from jaxpurify.data.poison import PatchTrigger, Poison
from jaxpurify.random import named
from jaxpurify.struct import static, struct
from jaxpurify.types import Purifier, PyTree, StoredImages

PAIRINGS = ("one_to_one", "entry")
OBJECTIVES = ("squared", "mean_squared")


def hidden_trigger(
    apply: Apply,
    params: PyTree,
    key: Key[Array, ""],
    images: StoredImages,
    labels: StoredLabels,
    *,
    target: int,
    source: int | None = None,
    count: int | None = None,
    fraction: float | None = None,
    bases: Integer[np.ndarray, "_"] | None = None,
    epsilon: float = 16 / 255,
    steps: int = 250,
    learning_rate: float = 0.025,
    optimizer: str = "sign_then_adam",
    decay: bool = True,
    pairing: str = "one_to_one",
    objective: str = "squared",
    pattern: str = "random",
    size: int = 5,
    inset: int = 5,
    random_place: bool = False,
    draws: int | None = None,
    transform: Purifier | None = None,
    transform_draws: int = 1,
    augment: Callable | None = None,
    progress: loop.Report | None = None,
) -> Poison:
    """Hidden-trigger backdoor (arXiv:1910.00033): the trigger is in no training image, only its features are.

    delta = argmin over |delta|∞ <= epsilon of Σ_i ‖φ(x_i + delta_i) - φ(trigger(s_π(i)))‖², with P source images s
    drawn anew in every step and paired greedily: nearest pair first.

    Args:
      apply, params: features, as in `bullseye`; an ensemble pairs for each member and averages.
      key: draws the poisons, a `"random"` patch, the sources of every step and their patches' places; consumed.
      images, labels: the stored training images, uint8 [N, H, W, C], and their labels.
      target: the class that the trigger is to mean; poisons are images of it, labels kept.
      source: the class whose triggered images are to be misclassified; None: all others.
      count, fraction: how many poisons, or as a share of all N images; or
      bases: the positions of the images that become poisons, of class `target`.
      epsilon: bound of every value, units of [0, 1]; holds in stored 8-bit images.
      steps, learning_rate, optimizer, decay: as in `bullseye`, and `"sgd"`. The defaults are those of the framework
        of arXiv:2102.13624. Published: at most 5000 steps of gradient descent, 0.01 (0.001 in the benchmark), with a
        rate that falls by 5 % every 2000 steps and an end at a loss below 10, which are left out here.
      pairing: `"one_to_one"`: a poison and a source are used once (as described). `"entry"`: only the pair is crossed
        out, so that one poison can be drawn to several sources while another is left alone (published code).
      objective: `"squared"` as above, or `"mean_squared"`: over feature dimensions (the framework's).
      pattern, size: of the patch, as in `badnets.patch_trigger`; published 30 of 224 pixels, 5 of 32 in the benchmark.
      inset: its distance from the bottom and the right edge in pixels, in the test-time trigger.
      random_place: whether sources carry it anywhere while crafting (published) or where it is at test time.
      draws, transform, transform_draws, augment, progress: as in `bullseye`; sources do not go through the transform.

    Returns:
      The poison with its trigger; `how` holds the source class, and the objective on one draw of sources.

    Raises:
      ValueError: source equal to target, more poisons than images of the class or than sources, a patch that does
        not fit, unknown names, or an objective that stopped being finite.
    """
    check_dataset(images, labels)
    check_target(target, labels)
    for name, value, known in (("pairing", pairing, PAIRINGS), ("objective", objective, OBJECTIVES)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; known: {', '.join(known)}")
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    if source == target:
        raise ValueError(f"source is {source}, the target class; triggered images of it need no attack")
    if source is not None:
        check_target(source, labels)
    height, width, channels = images.shape[1:]
    if inset < 0 or size + inset > min(height, width):
        raise ValueError(f"inset is {inset} and size {size}; together they must fit into {height}x{width} pixels")
    index = choose_base(named(key, "choice"), labels, target, count, fraction, bases)
    number = len(index)
    pool = positions(labels != target if source is None else labels == source)
    if len(pool) < number:
        raise ValueError(f"count is {number}; there are only {len(pool)} images to carry the trigger")
    group = Group(key, index, target)
    problem = make_problem(
        apply,
        params,
        images,
        [group],
        objective=_objective(pairing, objective),
        epsilon=epsilon,
        learning_rate=learning_rate,
        optimizer=optimizer,
        decay_steps=steps if decay else 0,
        draws=draws,
        transform=transform,
        transform_draws=transform_draws,
        augment=augment,
    )
    shape = (height, width, channels)
    patch = patch_trigger(shape, named(key, "pattern"), pattern=pattern, size=size, corner="top-left")
    sources = _Sources(jnp.asarray(images[pool]), patch, named(key, "sources"), size, inset, random_place)
    state = initial_state(problem, start_at(problem, "zero"))
    (delta, _, _), losses = loop.scan(_step, state, steps, problem, sources, progress=progress)
    check_finite(np.asarray(losses))
    how = {
        "attack": "hidden_trigger",
        "epsilon": float(epsilon),
        "source": source,
        "steps": steps,
        "learning_rate": float(learning_rate),
        "optimizer": optimizer,
        "decay": decay,
        "pairing": pairing,
        "objective_form": objective,
        "pattern": pattern,
        "size": size,
        "inset": inset,
        "random_place": random_place,
    }
    problem = dataclasses.replace(problem, aims=_source_features(problem, sources, jnp.uint32(2**32 - 1)))
    poison = finish(problem, [group], delta, None, how)[0]
    return dataclasses.replace(poison, trigger=_placed(patch, height - size - inset, width - size - inset))


def hidden_trigger_loss(
    features: Float[Array, "poisons features"], sources: Float[Array, "sources features"], pairing: str = "one_to_one"
) -> Float[Array, ""]:
    """Σ over pairs of ‖features_i - sources_π(i)‖²; no gradient flows through the pairing."""
    pairs = greedy_pairs(lax.stop_gradient(_distances(features, sources)), pairing)
    return ((features[pairs[:, 0]] - sources[pairs[:, 1]]) ** 2).sum()


def greedy_pairs(distances: Float[Array, "poisons sources"], pairing: str = "one_to_one") -> Int[Array, "pairs 2"]:
    """(poison, source) pairs, the nearest first, as many as there are poisons (`"one_to_one"`: or sources).

    A pair that was taken is crossed out with its row and column, or, for `"entry"`, alone.
    """
    number = min(distances.shape) if pairing == "one_to_one" else len(distances)
    return loop.scan(_take_one_to_one if pairing == "one_to_one" else _take_entry, distances, number)[1]


def _take_one_to_one(remaining, _):
    pair, row, column = _nearest(remaining)
    return jnp.where(row | column, jnp.inf, remaining), pair


def _take_entry(remaining, _):
    pair, row, column = _nearest(remaining)
    return jnp.where(row & column, jnp.inf, remaining), pair


def _nearest(distances):
    """The nearest pair, and masks of its row [P, 1] and its column [1, S]."""
    row, column = jnp.unravel_index(distances.argmin(), distances.shape)
    rows, columns = (jnp.arange(length) for length in distances.shape)
    return jnp.stack([row, column]), (rows == row)[:, None], (columns == column)[None]


@struct
class _Sources:
    pool: Array
    patch: PatchTrigger
    key: Key[Array, ""]
    size: int = static()
    inset: int = static()
    random_place: bool = static()


def _step(state, index, problem, sources):
    aims = lax.stop_gradient(_source_features(problem, sources, index))
    return descent_step(state, index, dataclasses.replace(problem, aims=aims))


@jax.jit
def _source_features(problem, sources, index):
    """Features of P triggered source images, drawn for step `index`."""
    key = jax.random.fold_in(sources.key, index)
    number = problem.bases.shape[1]
    # The places of the largest of as many random numbers: a random subset in random order.
    chosen = lax.top_k(jax.random.uniform(named(key, "choice"), (len(sources.pool),)), number)[1]
    images = to_float(sources.pool[chosen])
    height, width = images.shape[1] - sources.size, images.shape[2] - sources.size
    if sources.random_place:
        rows, columns = (
            jax.random.randint(named(key, name), (number,), 0, limit + 1)
            for name, limit in (("rows", height), ("columns", width))
        )
        images = jax.vmap(lambda *at: _placed(sources.patch, *at[1:])(at[0][None])[0])(images, rows, columns)
    else:
        images = _placed(sources.patch, height - sources.inset, width - sources.inset)(images)
    return network_features(problem.apply, problem.members, images[None], named(key, "network"), problem.draws)


def _placed(patch: PatchTrigger, row: Any, column: Any) -> PatchTrigger:
    """A top-left patch moved down by `row` and right by `column` pixels."""
    return PatchTrigger(*(jnp.roll(part, (row, column), (0, 1)) for part in (patch.pattern, patch.mask)))


def _distances(features, sources):
    return ((features[:, None] - sources[None]) ** 2).sum(-1)


@functools.cache
def _objective(pairing, form):
    def one(features, sources):
        flat = [block.reshape(len(block), -1) for block in features]
        aims = [block.reshape(len(block), -1) for block in sources]
        if form == "mean_squared":
            flat, aims = ([block / block.shape[1] ** 0.5 for block in blocks] for blocks in (flat, aims))
        return hidden_trigger_loss(jnp.concatenate(flat, 1), jnp.concatenate(aims, 1), pairing)

    def objective(features, aims, memory):
        losses = [jax.vmap(one)(*pair) for pair in zip(features, aims, strict=True)]
        return sum(losses) / len(losses), memory

    return objective
