"""The loop that crafts perturbations within a budget: all restarts in one program, signed Adam, projection."""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt8
import numpy as np
import optax

from jaxpurify import loop
from jaxpurify.attack.budget import add_levels, to_levels
from jaxpurify.attack.choose import check_whole
from jaxpurify.attack.signed_adam import decayed, project, sign_then_adam
from jaxpurify.data.image import to_float
from jaxpurify.data.poison import Poison, Targets
from jaxpurify.random import named
from jaxpurify.sharding import BATCH_AXES, by_columns, by_shares, data_mesh, replicate, shard
from jaxpurify.struct import static, struct
from jaxpurify.types import PyTree

Delta = Float[Array, "restarts rows height width channels"]
OPTIMIZERS = ("sign_then_adam", "adam")


@runtime_checkable
class Objective(Protocol):
    """`(delta [P, H, W, C], key, crafting) -> (value, gradient)` for one restart at one step; a callable pytree.

    The key is the restart's and the step's own, consumed.
    """

    def __call__(
        self, delta: Any, key: Any, crafting: "Crafting", /
    ) -> tuple[Float[Array, ""], Float[Array, "rows height width channels"]]: ...


@struct
class Crafting:
    """The images that are perturbed and how.

    Attributes:
      images: stored images, uint8 [P, H, W, C].
      labels: the labels that they carry in training [P].
      index: their positions in the training set [P]; keys of single images are folded with them.
      key: of the whole crafting.
      epsilon, learning_rate: units of [0, 1].
      steps: of the whole schedule.
      decay: whether the rate falls by 10 at the published milestones.
      optimizer: "sign_then_adam" (the gradient's sign, then Adam) or "adam".
      together: restarts computed side by side on a device, the others after them in the same program; 0: one on CPU,
        where more at once take longer to compile and no less time, all of them elsewhere.
      mesh: the devices that share the restarts; None: one. Set by `advance`.
      split: the mesh's devices share the rows of every restart instead; set by `targeted.split_over`.
    """

    images: UInt8[Array, "rows height width channels"]
    labels: Int[Array, "rows"]
    index: Int[Array, "rows"]
    key: Key[Array, ""]
    epsilon: Float[Array, ""]
    learning_rate: Float[Array, ""]
    steps: int = static()
    decay: bool = static(default=True)
    optimizer: str = static(default="sign_then_adam")
    together: int = static(default=0)
    mesh: Mesh | None = static(default=None)
    split: bool = static(default=False)

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes over which an objective sees a share of the rows only."""
        return BATCH_AXES if self.split else ()

    def float_images(self) -> Float[Array, "rows height width channels"]:
        """The images in [0, 1]."""
        return to_float(self.images)

    def transformation(self) -> optax.GradientTransformation:
        """The optimiser with its schedule."""
        rate = decayed(self.learning_rate, self.steps, decay=self.decay)
        return optax.adam(rate) if self.optimizer == "adam" else sign_then_adam(rate)


@struct
class Progress:
    """Where crafting stands: `delta` [R, P, H, W, C], the optimiser's moments, and the steps taken."""

    delta: Delta
    moments: PyTree
    count: Int[Array, ""]


def start(crafting: Crafting, restarts: int) -> Progress:
    """The published start: normal numbers times epsilon, projected; another draw for every restart.

    Rows split over devices stay where the images of `crafting` are.
    """
    return _start(crafting, jnp.arange(restarts))


@jax.jit
def _start(crafting, restarts):
    key = named(crafting.key, "start")
    images = crafting.float_images()

    def one(restart):
        noise = jax.random.normal(jax.random.fold_in(key, restart), images.shape)
        return project(noise * crafting.epsilon, images, crafting.epsilon)

    delta = jax.vmap(one)(restarts)
    return Progress(delta, crafting.transformation().init(delta), jnp.zeros((), jnp.int32))


def advance(
    objective: Objective, crafting: Crafting, state: Progress, steps: int, progress: loop.Report | None = None
) -> tuple[Progress, Float[np.ndarray, "_ _"]]:
    """`steps` further steps of every restart; the state, and the objective [steps, R] before each of them.

    As many of this process's devices as can share the restarts evenly compute them, unless the caller has placed the
    images on devices.
    """
    objective, crafting, state = _split_restarts(objective, crafting, state)
    state, values = loop.scan(craft_step, state, steps, objective, crafting, progress=progress)
    return state, np.asarray(jax.device_get(values))


def craft_step(
    state: Progress, index: Any, objective: Objective, crafting: Crafting
) -> tuple[Progress, Float[Array, "restarts"]]:
    """One step of every restart: the optimiser's update, projected onto the budget; the objectives before it.

    Args:
      state: where crafting stands; it counts the steps, so that crafting can pause.
      index: not used; loops pass it.
      objective: gives value and gradient for one restart.
      crafting: the images and how they are perturbed; its key draws each step's and restart's own.
    """
    del index  # steps are counted in the state, so that crafting can pause
    step_key = jax.random.fold_in(named(crafting.key, "steps"), state.count)
    restarts = jnp.arange(len(state.delta))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, restarts)
    rows = (state.delta, keys)
    if crafting.mesh is None:
        values, gradients = _by_groups(rows, objective, crafting)
    elif crafting.split:
        own = {name: getattr(crafting, name) for name in ("images", "labels", "index")}
        values, gradients = by_columns(crafting.mesh, _rows_by_groups, state.delta, own, keys, objective, crafting)
    else:
        values, gradients = by_shares(crafting.mesh, _by_groups, rows, objective, crafting)
    optimizer: Any = crafting.transformation()
    updates, moments = optimizer.update(gradients, state.moments, state.delta)
    delta = project(state.delta + updates, crafting.float_images()[None], crafting.epsilon)
    return Progress(delta, moments, state.count + 1), values


def _split_restarts(objective: Objective, crafting: Crafting, state: Progress) -> tuple[Objective, Crafting, Progress]:
    """Restarts over devices, everything else on all of them; as it is where there is nothing to share."""
    devices = jax.local_devices()
    groups = len(state.delta) // (crafting.together or 1)
    shares = max(count for count in range(1, len(devices) + 1) if groups % count == 0)
    if shares == 1 or crafting.mesh is not None or crafting.images.committed:  # placed by the caller
        return objective, crafting, state
    mesh = data_mesh(devices[:shares])
    state = jax.tree.map(lambda leaf: shard(mesh, leaf) if leaf.ndim else replicate(mesh, leaf), state)
    return replicate(mesh, objective), dataclasses.replace(replicate(mesh, crafting), mesh=mesh), state


def _by_groups(rows, objective, crafting):
    """The objective's values [R] and gradients [R, …] for deltas and keys [R], some restarts at a time."""
    delta, keys = rows
    restarts = len(delta)
    together = crafting.together or (1 if jax.default_backend() == "cpu" else restarts)
    if together >= restarts:
        return _group(None, jnp.uint32(0), delta[None], keys[None], objective, crafting)[1]
    groups = jax.tree.map(lambda leaf: leaf.reshape(-1, together, *leaf.shape[1:]), (delta, keys))
    _, found = loop.scan(_group, None, restarts // together, *groups, objective, crafting)
    return jax.tree.map(lambda leaf: leaf.reshape(restarts, *leaf.shape[2:]), found)


def _rows_by_groups(delta, own, keys, objective, crafting):
    """`_by_groups` for a share of the rows."""
    return _by_groups((delta, keys), objective, dataclasses.replace(crafting, **own))


def _group(state, index, delta, keys, objective, crafting):
    return state, jax.vmap(lambda delta, key: objective(delta, key, crafting))(delta[index], keys[index])


def best(state: Progress, values: Float[np.ndarray, "_ _"]) -> tuple[Float[np.ndarray, "_ _ _ _"], int]:
    """The perturbation [P, H, W, C] of the restart whose last value is lowest, and its number.

    Raises:
      ValueError: no restart ended with a finite value.
    """
    last = values[-1]
    if not np.isfinite(last).any():
        first = int(np.argmin(np.isfinite(values).any(1)))
        raise ValueError(f"the objective is not finite at step {first} of {len(values)}; lower learning_rate")
    chosen = int(np.nanargmin(np.where(np.isfinite(last), last, np.nan)))
    return np.asarray(jax.device_get(state.delta[chosen])), chosen


def crafted_poison(
    crafting: Crafting,
    state: Progress,
    values: Float[np.ndarray, "_ _"],
    *,
    target: int,
    how: dict[str, Any],
    trigger: Any = None,
    targets: Targets | None = None,
) -> Poison:
    """The poison of the best restart, in whole 8-bit levels within `how["epsilon"]`; labels are kept.

    `how` gains what the crafting says of itself: steps, schedule, restarts, and their first and last objectives.

    Raises:
      ValueError: no restart ended with a finite value.
    """
    delta, chosen = best(state, values)
    return Poison(
        images=add_levels(np.asarray(crafting.images), to_levels(delta, how["epsilon"])),
        labels=np.asarray(crafting.labels),
        index=np.asarray(crafting.index),
        target=target,
        trigger=trigger,
        targets=targets,
        how={
            **how,
            "labels_changed": False,
            "count": len(crafting.index),
            "norm": "linf",
            "steps": crafting.steps,
            "decay": crafting.decay,
            "optimizer": crafting.optimizer,
            "restarts": len(state.delta),
            "chosen_restart": chosen,
            "first_losses": _plain(values[0]),
            "last_losses": _plain(values[-1]),
        },
    )


def _plain(losses):
    """Numbers as JSON holds them, None for those that are not finite."""
    return [float(value) if np.isfinite(value) else None for value in losses]


def check_settings(steps: int, restarts: int, learning_rate: float, optimizer: str = "sign_then_adam") -> None:
    """Refuses settings with which nothing would be crafted.

    Raises:
      ValueError: fewer than one step or restart, a rate that is not above 0, an unknown optimiser.
    """
    check_whole(steps=steps, restarts=restarts)
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps is {steps} and restarts is {restarts}; both must be at least 1")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate is {learning_rate}; it must be above 0 and finite")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is {optimizer!r}; known: {', '.join(OPTIMIZERS)}")
