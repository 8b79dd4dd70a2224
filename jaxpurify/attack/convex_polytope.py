"""Convex Polytope: clean-label poisons whose convex hull in feature space contains the target."""

from collections.abc import Callable, Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key
import numpy as np

from jaxpurify import loop
from jaxpurify.attack.choose import StoredLabels
from jaxpurify.attack.feature_groups import choose_groups, finish, make_problem
from jaxpurify.attack.feature_steps import descend, initial_state, start_at
from jaxpurify.attack.surrogate import Apply
from jaxpurify.data.poison import Poison, Targets
from jaxpurify.types import Purifier, PyTree, StoredImages


def convex_polytope(
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
    epsilon: float = 8 / 255,
    steps: int = 1200,
    learning_rate: float = 0.008,
    optimizer: str = "adam",
    decay: bool = False,
    coefficient_steps: int = 200,
    warm_start: bool = True,
    start: str = "zero",
    restarts: int = 1,
    draws: int | None = None,
    transform: Purifier | None = None,
    transform_draws: int = 1,
    augment: Callable | None = None,
    progress: loop.Report | None = None,
) -> Poison | list[Poison]:
    """Convex Polytope (arXiv:1905.05897): the target's feature as a convex combination of the poisons'.

    delta = argmin over |delta|∞ <= epsilon of the sum over networks and blocks of
    ½ ‖φ(t) - Σ_i c_i φ(x_i + delta_i)‖² / ‖φ(t)‖², where c = argmin over the simplex of the same, solved anew in
    every step and constant for the gradient.

    Args:
      apply, params, key, images, labels, target, targets, count, fraction, bases, separately: as in `bullseye`.
        Only one target image, unless `separately`. A list of feature maps is the end-to-end variant, in which each
        block has coefficients of its own.
      epsilon: bound of every value, units of [0, 1]; holds in stored 8-bit images. Published: 0.1.
      steps, learning_rate, optimizer, decay: of delta, as in `bullseye`. Published: 4000 steps (1200 in the benchmark).
      coefficient_steps: projected-gradient steps for c in every step of delta.
      warm_start: whether c starts from its last value (published) or from 1/P every time (the framework of
        arXiv:2102.13624).
      start, restarts, draws, transform, transform_draws, augment, progress: as in `bullseye`.

    Returns:
      The poison, or a list of them if `separately`.

    Raises:
      ValueError: several targets together, `coefficient_steps` below 1, and what `bullseye` refuses.

    Warning: published code estimates the step size from a random vector and halves it when the error rises, up to
    10,000 times; here it is 1 over the largest eigenvalue, with Nesterov's momentum and a fixed number of steps.
    """
    if coefficient_steps < 1:
        raise ValueError(f"coefficient_steps is {coefficient_steps}; it must be at least 1")
    if not separately and len(targets) > 1:
        raise ValueError(f"targets hold {len(targets)} images; this attack is for one at a time, see separately")
    if restarts > 1 and start == "zero":
        raise ValueError(f"restarts is {restarts} with start 'zero': all would be equal; use start 'normal'")
    chosen = {"target": target, "targets": targets, "count": count, "fraction": fraction, "bases": bases}
    groups = choose_groups(images, labels, key, separately=separately, **chosen)
    problem = make_problem(
        apply,
        params,
        images,
        groups,
        objective=_objective(coefficient_steps, warm_start),
        epsilon=epsilon,
        learning_rate=learning_rate,
        optimizer=optimizer,
        decay_steps=steps if decay else 0,
        restarts=restarts,
        draws=draws,
        transform=transform,
        transform_draws=transform_draws,
        augment=augment,
    )
    poisons, blocks = problem.bases.shape[1], len(jax.tree.leaves(problem.aims))
    coefficients = jnp.full((blocks, problem.transform_draws * len(problem.bases), poisons), 1 / poisons, jnp.float32)
    state = initial_state(problem, start_at(problem, start), coefficients)
    (delta, _, coefficients), _ = descend(problem, state, steps, progress)
    how = {
        "attack": "convex_polytope",
        "epsilon": float(epsilon),
        "steps": steps,
        "learning_rate": float(learning_rate),
        "optimizer": optimizer,
        "decay": decay,
        "coefficient_steps": coefficient_steps,
        "warm_start": warm_start,
        "start": start,
        "restarts": restarts,
    }
    crafted = finish(problem, groups, delta, coefficients, how)
    return crafted if separately else crafted[0]


def convex_polytope_loss(
    features: Float[Array, "poisons features"],
    aim: Float[Array, "features"],
    coefficients: Float[Array, "poisons"],
    *,
    steps: int = 200,
) -> tuple[Float[Array, ""], Float[Array, "poisons"]]:
    """½ ‖aim - Σ c_i features_i‖² / ‖aim‖² at the best c on the simplex, and this c.

    c is found by `steps` projected-gradient steps with momentum from `coefficients`; no gradient flows through it.
    """
    blocks = ((features[None],),), ((aim[None, None],),)
    losses, memory = _objective(steps, True)(*blocks, coefficients[None, None])
    return losses[0], memory[0, 0]


def simplex_least_squares(
    gram: Float[Array, "poisons poisons"], start: Float[Array, "poisons"], steps: int
) -> Float[Array, "poisons"]:
    """argmin of c' gram c over the simplex, by accelerated projected gradient that restarts when it turns back."""
    rate = 1 / jnp.maximum(jnp.linalg.eigvalsh(gram)[-1], jnp.finfo(gram.dtype).tiny)

    one = jnp.ones((), gram.dtype)
    return loop.repeat(_coefficient_step, (start, start, one), steps, gram, rate)[0]


def _coefficient_step(state, index, gram, rate):
    current, ahead, momentum = state
    moved = simplex_projection(ahead - rate * (gram @ ahead))
    turned = ((ahead - moved) * (moved - current)).sum() > 0
    momentum = jnp.where(turned, 1.0, momentum)
    following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
    ahead = moved + (momentum - 1) / following * (moved - current)
    return moved, ahead, following


def simplex_projection(point: Float[Array, "count"]) -> Float[Array, "count"]:
    """The nearest point with entries of 0 or more that sum to 1 (Duchi et al., 2008): max(point - shift, 0)."""
    descending = jnp.sort(point)[::-1]
    shifts = (jnp.cumsum(descending) - 1) / jnp.arange(1, len(point) + 1)
    support = (descending > shifts).sum()
    return jnp.maximum(point - shifts[support - 1], 0.0)


@functools.cache
def _objective(steps, warm_start):
    def objective(features, aims, memory):
        pairs = [pair for blocks in zip(features, aims, strict=True) for pair in zip(*blocks, strict=True)]
        flat = [(rows.reshape(*rows.shape[:2], -1), aim.reshape(len(aim), 1, -1)) for rows, aim in pairs]
        # Coefficients sum to 1, so that Σ c_i f_i - t = Σ c_i (f_i - t): the target is taken out of every feature.
        # Blocks differ in their number of features, not in their Gram matrices: one program solves for all.
        gram = jnp.stack([_gram(rows - aim) for rows, aim in flat])
        start = memory if warm_start else jnp.full_like(memory, 1 / memory.shape[-1])
        solve = functools.partial(simplex_least_squares, steps=steps)
        memory = jax.vmap(jax.vmap(solve))(lax.stop_gradient(gram), start)
        losses = jnp.stack([_loss(*pair, chosen) for pair, chosen in zip(flat, memory, strict=True)])
        return losses.sum(0), memory

    return objective


def _gram(rows):
    return jnp.einsum("gpf,gqf->gpq", rows, rows)


def _loss(features, aim, coefficients):
    """½ ‖Σ c_i (f_i - aim)‖² / ‖aim‖² for features [G, P, F], aim [G, 1, F] and coefficients [G, P]."""
    combined = jnp.einsum("gp,gpf->gf", coefficients, features - aim)
    return 0.5 * (combined**2).sum(-1) / (aim**2).sum((1, 2))
