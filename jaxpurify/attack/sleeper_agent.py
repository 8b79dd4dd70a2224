"""Sleeper Agent: a hidden trigger by gradient matching, with the surrogate retrained on the poisons on the way."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np

from jaxpurify import loop
from jaxpurify.attack.badnets import patch_trigger
from jaxpurify.attack.budget import add_levels, levels, to_levels
from jaxpurify.attack.choose import StoredLabels, check_dataset, check_target, choose, poison_count, positions
from jaxpurify.attack.crafting import advance, check_settings, crafted_poison, start
from jaxpurify.attack.gradient_norms import gradient_norms
from jaxpurify.attack.matching import Passenger
from jaxpurify.attack.matching_objective import Matching, check_batches, ensemble, replaced
from jaxpurify.attack.second_order import summed_gradient
from jaxpurify.attack.surrogate import Apply
from jaxpurify.attack.targeted import check_outputs, make_crafting
from jaxpurify.attack.view import RowLosses, View
from jaxpurify.data.image import to_float
from jaxpurify.data.poison import Poison, ScatteredPatchTrigger, paste
from jaxpurify.random import image_keys, named
from jaxpurify.struct import as_operand, struct
from jaxpurify.types import Images, Keys, Purifier, PyTree, StoredImages

# (the training images as poisoned so far, uint8 [N, H, W, C]; their labels [N]; a key) to (apply, params).
Retrain = Callable[[Any, Any, Any], Any]
SELECTIONS = ("gradient", "random")


def sleeper_agent(
    apply: Apply | tuple | list,
    params: PyTree,
    key: Key[Array, ""],
    images: StoredImages,
    labels: StoredLabels,
    *,
    target: int,
    source: int | None = None,
    count: int | None = None,
    fraction: float | None = None,
    epsilon: float = 16 / 255,
    patch: Float[np.ndarray | Array, "_ _ _"] | None = None,
    size: int = 8,
    source_count: int | None = None,
    selection: str = "gradient",
    retrain: Retrain | None = None,
    retrain_every: int = 50,
    loss: str | Passenger = "similarity",
    steps: int = 250,
    restarts: int = 1,
    learning_rate: float = 0.025,
    decay: bool = True,
    optimizer: str = "sign_then_adam",
    augment: Any = None,
    match: str = "all",
    micro_batch: int | None = None,
    chunk: int = 256,
    transform: Purifier | None = None,
    transform_draws: int = 1,
    progress: loop.Report | None = None,
) -> Poison:
    """Sleeper Agent (arXiv:2106.08970): clean-label poisons that hide a patch they do not contain.

    Gradient matching (see `gradient_matching`) with t = mean over source images of ∇_θ CE(f(x with the patch at a
    random place), target). Every `retrain_every` steps the surrogate is trained anew on the training set as it is
    poisoned by then, and t computed again.

    Args:
      apply: the surrogate, `(params, images) -> logits`; a list with one a member where members differ.
      params: what training moves; a tuple or list is an ensemble.
      key: draws sources, poisons, patch and places, starts, augmentation, and the keys of `retrain`.
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels, integers [N].
      target: the class that the trigger is to mean; poisons are images of it.
      source: the class whose images with the patch are to be taken for `target`; None: all other classes.
      count: how many poisons; or
      fraction: the same as a share of all N images (published: 0.01).
      epsilon: bound of every value of a poison, units of [0, 1]; holds in stored 8-bit images. The patch is not
        bound by it: no poison carries it.
      patch: the patch [s, s, C] in [0, 1]; None: `size` × `size` random black and white values a channel.
      size: side of the random patch.
      source_count: how many source images t averages over, drawn once; None: all.
      selection: which images of class `target` become poisons: "gradient", those with the longest gradient of their
        own loss, or "random".
      retrain: `(images, labels, key) -> (apply, params)`, both in the form in which they are given here, or None: the
        surrogate stays. Running statistics belong to `apply`; where nothing but arrays differ, nothing recompiles.
      retrain_every: steps between retrainings; the published 50 of 250 makes four.
      loss: Φ, a name from `attack.matching.PASSENGERS` or a `Passenger`.
      steps, restarts, learning_rate, decay, optimizer, augment, match, micro_batch: as in `gradient_matching`.
      chunk: source images at a time where t is computed.
      transform: keys [B] and poisoned images to images, through which the gradient goes; makes the attack adaptive.
      transform_draws: draws of purifier and augmentation over which the poisons' loss is averaged.
      progress: called with (finished steps, all steps).

    Returns:
      The poison: labels kept; its `trigger` puts the patch at a random place of every image; `how["source"]` says of
      which class's images success is counted.

    Raises:
      ValueError: `epsilon` outside [1/255, 1], unknown names or classes, `source` equal to `target`, more poisons
        than images of the class, several restarts with `retrain` (only one set of poisons can be trained on), or an
        objective that is not finite.
    """
    levels(epsilon)
    check_settings(steps, restarts, learning_rate, optimizer)
    check_dataset(images, labels)
    check_target(target, labels)
    if retrain is not None and (restarts != 1 or retrain_every < 1):
        raise ValueError(f"restarts is {restarts} and retrain_every is {retrain_every}; with retrain, 1 and at least 1")
    check_batches(match, micro_batch)
    passenger = loss if isinstance(loss, Passenger) else Passenger(loss)
    if passenger.repel == "intended" and float(passenger.repel_weight):
        raise ValueError(f"loss has repel_weight {passenger.repel_weight}; this attack repels nothing")
    if chunk < 1 or selection not in SELECTIONS:
        raise ValueError(f"selection is {selection!r} and chunk is {chunk}; known: {', '.join(SELECTIONS)}, at least 1")
    applies, members = ensemble(apply, params)
    check_outputs(applies, members, images.shape[1:], target)
    patch = _patch(images.shape[1:], patch, size, named(key, "patch"))
    seed = jax.random.randint(named(key, "test places"), (), 0, 2**31 - 1)
    trigger = ScatteredPatchTrigger(np.asarray(patch), np.asarray(seed))
    sources = _sources(named(key, "sources"), labels, source, target, source_count)
    number = poison_count(count, fraction, len(labels))
    index = _bases(named(key, "choice"), images, labels, target, number, (applies, members), selection)
    crafting = make_crafting(images, labels, index, key, epsilon, learning_rate, steps, decay, optimizer)
    state = start(crafting, restarts)
    views = View(as_operand(transform), as_operand(augment))
    seen = to_float(jnp.asarray(images[sources]))

    def matching(applies, members, when):
        keys = image_keys(jax.random.fold_in(named(key, "places"), when), jnp.asarray(sources))
        wanted = tuple(
            _source_gradient(each, member, Scatter(patch), keys, seen, jnp.int32(target), chunk)
            for each, member in zip(applies, members, strict=True)
        )
        options = {"draws": transform_draws, "match": match, "micro_batch": micro_batch}
        return Matching(applies, members, wanted, passenger, views, **options)

    objective = matching(applies, members, 0)
    pieces, length = [], steps if retrain is None else retrain_every
    for first in range(0, steps, length):
        if first and retrain is not None:
            poisoned = images.copy()
            poisoned[index] = add_levels(images[index], to_levels(np.asarray(state.delta[0]), epsilon))
            fresh = retrain(poisoned, labels, jax.random.fold_in(named(key, "retrain"), first))
            objective = matching(*replaced(fresh, members, "retrain"), first)
        state, values = advance(
            objective, crafting, state, min(length, steps - first), loop.part_of(progress, first, steps)
        )
        pieces.append(values)
    values = np.concatenate(pieces)
    how = {
        "attack": "sleeper_agent",
        "source": source,
        "sources": len(sources),
        "epsilon": float(epsilon),
        "patch_size": int(patch.shape[0]),
        "selection": selection,
        "retrainings": len(pieces) - 1,
        "retrain_every": retrain_every if retrain is not None else None,
        "loss": passenger.name,
        "members": len(members),
        "learning_rate": float(learning_rate),
        "augmented": augment is not None,
        "match": match,
        "micro_batch": micro_batch,
        "adaptive": transform is not None,
        "transform_draws": transform_draws,
    }
    return crafted_poison(crafting, state, values, target=target, trigger=trigger, how=how)


@struct
class Scatter:
    """Puts `patch` [s, s, C] at a uniformly random place of each image; one key an image, consumed."""

    patch: Float[Array, "side side channels"]

    def __call__(self, keys: Keys, images: Images) -> Images:
        return paste(self.patch, keys, images)


@functools.partial(jax.jit, static_argnames="chunk")
def _source_gradient(apply, params, scatter, keys, images, target, chunk):
    """t of one member with a leading axis of 1, a chunk of sources at a time."""
    rows = images, jnp.full(len(images), target), keys
    losses = RowLosses(apply, View(augment=scatter))
    _, gradient = summed_gradient(losses, params, jnp.zeros_like(images), rows, micro_batch=chunk)
    return jax.tree.map(lambda leaf: leaf[None], gradient)


def _patch(shape, patch, size, key) -> Array:
    """The patch [s, s, C]: the one given, or random black and white values."""
    if patch is None:
        trigger = patch_trigger(shape, key, pattern="random", size=size)
        return jnp.asarray(trigger.pattern)[shape[0] - size :, shape[1] - size :]
    patch = jnp.asarray(patch, jnp.float32)
    side = patch.shape[0]
    if patch.shape != (side, side, shape[2]) or not 1 <= side <= min(shape[:2]):
        raise ValueError(f"patch has the shape {patch.shape}; it must be a square that fits into images of {shape}")
    return patch


def _bases(key, images, labels, target, number, surrogate, selection):
    """Positions of the images that become poisons: those of the longest gradients, or random ones."""
    of_class = positions(labels == target)
    if selection == "random" or number > len(of_class):
        return choose(key, of_class, number, what=f"images of class {target}")
    applies, members = surrogate
    norms = gradient_norms(applies, members, images[of_class], labels[of_class])
    return np.sort(of_class[np.argsort(-norms, kind="stable")[:number]])


def _sources(key, labels, source, target, count):
    """Positions of the source images."""
    if source is not None and not np.any(labels == source):
        raise ValueError(f"source is {source}; no training image has this label")
    if source == target:
        raise ValueError(f"source is {source}, which is the target class; patched images of it are right already")
    found = positions(labels != target) if source is None else positions(labels == source)
    what = "source images" if source is None else f"images of class {source}"
    return found if count is None else choose(key, found, count, what=what)
