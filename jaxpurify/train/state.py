"""What training carries from step to step, and the one parameter update that every trainer uses."""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import optax

from jaxpurify.struct import struct
from jaxpurify.types import PyTree


class TrainingDiverged(ValueError):
    """Training met a loss that is not finite, or left the range in which it can recover."""


@struct
class TrainState:
    """Pure arrays: parameters, other model state (batch statistics), optimizer state and steps taken."""

    params: PyTree
    model_state: PyTree
    optimizer_state: PyTree
    step: Int[Array, "..."]


def create_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> tuple[nnx.GraphDef, TrainState]:
    """Splits a freshly made module into its static structure and the state that training changes."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = jax.tree.map(jnp.copy, (nnx.as_pure(params), nnx.as_pure(rest)))
    return graphdef, TrainState(params, rest, optimizer.init(params), jnp.zeros((), jnp.int32))


def update(
    state: TrainState,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    loss: Callable[[nnx.Module], tuple[Array, Any]],
) -> tuple[TrainState, Array, Any]:
    """One gradient step on `loss(model) -> (value, auxiliary)`; returns the new state, value and auxiliary."""

    def objective(params):
        model = nnx.merge(graphdef, params, state.model_state)
        value, auxiliary = loss(model)
        return value, (nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param))), auxiliary)

    (value, (model_state, auxiliary)), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, model_state, optimizer_state, state.step + 1), value, auxiliary
