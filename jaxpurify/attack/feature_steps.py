"""What attacks on features share: the features of poisons, and the descent of an objective of them.

`G` is the number of groups that are crafted side by side: one target (or one set of targets) and one restart
each. Poisons of different groups do not see each other, so that one program crafts for many targets.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8
import numpy as np
import optax

from jaxpurify import loop
from jaxpurify.attack.signed_adam import decayed, project, sign_then_adam, signed_adam
from jaxpurify.data.image import to_float
from jaxpurify.random import fold, image_keys, named, normal
from jaxpurify.struct import static, struct
from jaxpurify.types import PyTree

OPTIMIZERS = {"signed_adam": signed_adam, "sign_then_adam": sign_then_adam, "adam": optax.adam, "sgd": optax.sgd}
STARTS = ("zero", "normal")


@struct
class Problem:
    """What a descent on features reads.

    Attributes:
      apply, members: `apply(member, images)` gives features [B, …] or a list of them, one a block.
      transform, augment: callables (keys, images), or None.
      key: of the network's own draws, which all images share.
      keys: [G], of everything that is drawn for an image.
      positions: [G, P], of the poisons in the training set; they name their keys.
      bases: [G, P, H, W, C], the stored images that become poisons.
      aims: features of the targets: a tuple of members, each a tuple of blocks [G, T, …].
      epsilon, learning_rate: units of [0, 1].
      objective: `(features, aims, memory) -> (losses [G], memory)` on trees like `aims`; a module-level function.
      optimizer: a name in `OPTIMIZERS`.
      decay_steps: length of the published schedule; 0: the rate is constant.
      draws: how many draws of a stochastic network are averaged; None: it is called without a key.
      transform_draws: how many draws of `transform` and `augment` the objective is averaged over.
    """

    apply: PyTree
    members: tuple
    transform: PyTree
    augment: PyTree
    key: Key[Array, ""]
    keys: Key[Array, "groups"]
    positions: Int[Array, "groups poisons"]
    bases: UInt8[Array, "groups poisons height width channels"]
    aims: PyTree
    epsilon: Array
    learning_rate: Array
    objective: Callable = static()
    optimizer: str = static()
    decay_steps: int = static()
    draws: int | None = static()
    transform_draws: int = static()


def network_features(
    apply: PyTree,
    members: tuple,
    images: Float[Array, "groups rows height width channels"],
    key: Any,
    draws: int | None,
) -> tuple:
    """Features of each member: a tuple of blocks [G, rows, …], averaged over `draws` draws of a stochastic network."""
    flat = images.reshape(-1, *images.shape[2:])
    answers = []
    for number, member in enumerate(members):
        if draws is None:
            blocks = _blocks(apply(member, flat))
        else:
            keys = jax.random.split(jax.random.fold_in(key, number), draws)
            drawn = [_blocks(apply(member, flat, keys[draw])) for draw in range(draws)]
            blocks = jax.tree.map(lambda *rows: sum(rows) / len(rows), *drawn)
        for block in blocks:
            if block.ndim < 2 or block.shape[0] != flat.shape[0]:
                raise ValueError(f"apply gives {block.shape} for {flat.shape[0]} images; features must be [B, …]")
        answers.append(tuple(block.reshape(*images.shape[:2], *block.shape[1:]) for block in blocks))
    return tuple(answers)


def poison_features(delta: Array, index: Any, problem: Problem) -> tuple:
    """Features of the poisons at `delta` [G, P, H, W, C], as the victim sees them in step `index`.

    Blocks are [draws · G, P, …]: every draw of `transform` and `augment` is a row of groups of its own.
    """
    images = to_float(problem.bases) + delta
    if problem.transform is not None or problem.augment is not None:
        copies = problem.transform_draws
        keys = jax.vmap(lambda draw: jax.vmap(lambda key, rows: _draw_keys(key, index, draw, rows))(*_names(problem)))(
            jnp.arange(copies)
        ).reshape(-1)
        images = jnp.tile(images, (copies, 1, 1, 1, 1))
        flat = images.reshape(-1, *images.shape[2:])
        if problem.transform is not None:
            flat = problem.transform(fold(keys, 0), flat)
        if problem.augment is not None:
            flat = problem.augment(fold(keys, 1), flat)
        images = flat.reshape(images.shape)
    key = jax.random.fold_in(named(problem.key, "network"), index)
    return network_features(problem.apply, problem.members, images, key, problem.draws)


def losses_at(delta: Array, index: Any, problem: Problem, memory: PyTree) -> tuple[Float[Array, "groups"], PyTree]:
    """The objective of each group in step `index`, averaged over the draws, and what it remembers."""
    aims = jax.tree.map(lambda block: jnp.concatenate([block] * problem.transform_draws), problem.aims)
    losses, memory = problem.objective(poison_features(delta, index, problem), aims, memory)
    return losses.reshape(problem.transform_draws, -1).mean(0), memory


def start_at(problem: Problem, start: str) -> Float[Array, "groups poisons height width channels"]:
    """delta before the first step: `"zero"`, or `"normal"`, epsilon times standard normal numbers, clipped to it."""
    if start not in STARTS:
        raise ValueError(f"start is {start!r}; known: {', '.join(STARTS)}")
    bases = to_float(problem.bases)
    if start == "zero":
        return jnp.zeros_like(bases)
    keys = jax.vmap(lambda key, rows: image_keys(named(key, "start"), rows))(*_names(problem))
    noise = normal(keys.reshape(-1), bases.shape[2:]).reshape(bases.shape)
    return project(noise * problem.epsilon, bases, problem.epsilon)


def initial_state(problem: Problem, delta: Array, memory: PyTree = None) -> tuple:
    """What `descent_step` carries: delta, the optimiser's moments, the objective's memory."""
    return delta, _optimizer(problem).init(delta), memory


def descent_step(state: tuple, index: Any, problem: Problem) -> tuple[tuple, Float[Array, "groups"]]:
    """One step of the optimiser on delta, projected onto the budget and the image box; losses before it."""

    def total(delta):
        losses, remembered = losses_at(delta, index, problem, memory)
        return losses.sum(), (losses, remembered)

    delta, moments, memory = state
    (_, (losses, memory)), gradient = jax.value_and_grad(total, has_aux=True)(delta)
    updates, moments = _optimizer(problem).update(gradient, moments, delta)
    delta = project(delta + updates, to_float(problem.bases), problem.epsilon)
    return (delta, moments, memory), losses


def descend(
    problem: Problem, state: tuple, steps: int, progress: loop.Report | None = None
) -> tuple[tuple, Float[np.ndarray, "steps groups"]]:
    """Runs `steps` steps; ValueError where the objective stops being finite."""
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    state, losses = loop.scan(descent_step, state, steps, problem, progress=progress)
    losses = np.asarray(losses)
    check_finite(losses)
    return state, losses


def check_finite(losses: Float[np.ndarray, "steps groups"]) -> None:
    """Raises ValueError, naming the first step, unless all losses are finite."""
    finite = np.isfinite(losses).all(1)
    if not finite.all():
        step = int(np.argmin(finite))
        raise ValueError(f"the objective is not finite at step {step} of {len(losses)}; lower learning_rate")


@jax.jit
def measure(problem: Problem, delta: Array, memory: PyTree) -> Float[Array, "groups"]:
    """The objective of each group at `delta`, under random draws that no step used."""
    return losses_at(delta, jnp.uint32(2**32 - 1), problem, memory)[0]


def _optimizer(problem):
    return OPTIMIZERS[problem.optimizer](
        decayed(problem.learning_rate, problem.decay_steps, decay=problem.decay_steps > 0)
    )


def _names(problem):
    return problem.keys, problem.positions


def _draw_keys(key, index, draw, rows):
    step_key = jax.random.fold_in(named(key, "transform"), index)
    return image_keys(jax.random.fold_in(step_key, draw), rows)


def _blocks(answer):
    return tuple(answer) if isinstance(answer, tuple | list) else (answer,)
