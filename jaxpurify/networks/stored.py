"""Networks as `.safetensors` files: weights, and in the header which network and options they belong to."""

import json
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from jaxpurify.destination import replacing
from jaxpurify.networks.catalogue import NETWORKS
from jaxpurify.networks.freeze import Frozen, freeze


def build(network: str, options: dict[str, Any], rngs: nnx.Rngs) -> nnx.Module:
    """A freshly made network from its name in `NETWORKS` and the options of its constructor.

    Raises:
      ValueError: unknown network, or options that it does not take.
    """
    if network not in NETWORKS:
        raise ValueError(f"unknown network {network!r}; known: {', '.join(sorted(NETWORKS))}")
    try:
        return NETWORKS[network](**options, rngs=rngs)
    except (TypeError, ZeroDivisionError) as error:
        raise ValueError(f"network {network!r} with options {options}: {error}") from None


def save_network(
    path: Path | str, frozen: Frozen, *, network: str, options: dict[str, Any], card: dict[str, Any] | None = None
) -> None:
    """Writes the weights of `frozen` with what is needed to build it again; the file is complete or as it was.

    Args:
      path: of the `.safetensors` file.
      frozen: the trained network.
      network, options: its name in `NETWORKS` and the options of its constructor.
      card: anything worth knowing about the weights (data, command, scores), JSON-able.

    Raises:
      ValueError: `network` and `options` build another network than `frozen` (weights of the same shapes may belong to
        several: mean and deviation of a classifier's images, the size of attention heads).
    """
    abstract = _abstract(network, json.loads(json.dumps(options)))
    shapes = [[(name, leaf.shape) for name, leaf in _named(each.state)] for each in (abstract, frozen)]
    if abstract.graphdef != frozen.graphdef or shapes[0] != shapes[1]:
        raise ValueError(
            f"network {network!r} with options {options} is another one than that whose weights are to be saved; "
            "name the options that it was made with"
        )
    header = {"network": network, "options": json.dumps(options), "card": json.dumps(card or {})}
    tensors = {name: np.asarray(leaf, order="C") for name, leaf in _named(frozen.state)}
    with replacing(Path(path), force=True) as temporary:
        temporary.write_bytes(save(tensors, header))


def load_network(path: Path | str) -> tuple[Frozen, dict[str, Any]]:
    """Reads a network and its card, as written by `save_network`.

    Raises:
      ValueError: no such file, not such a file, or weights that do not fit the network that they name.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights at {path}")
    try:
        with safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:
        raise ValueError(f"{path} is not a .safetensors file: {error}") from None
    if "network" not in header:
        raise ValueError(
            f"{path} does not say which network it belongs to; read published weights with from_torch "
            "and write them with save_network"
        )
    try:
        options, card = json.loads(header["options"]), json.loads(header["card"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: its header is damaged ({error})") from None
    frozen = _abstract(header["network"], options)
    return Frozen(_filled(path, frozen.state, tensors), frozen.graphdef), card


def _abstract(network: str, options: dict[str, Any]) -> Frozen:
    """The network with shapes in the place of arrays."""
    return freeze(nnx.eval_shape(lambda: build(network, options, nnx.Rngs(0))))


def _named(state) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def _filled(path, state, tensors):
    named = _named(state)
    missing = [name for name, _ in named if name not in tensors]
    left_over = sorted(set(tensors) - {name for name, _ in named})
    if missing or left_over:
        raise ValueError(f"{path}: missing tensors {missing}, left-over tensors {left_over}")
    for name, leaf in named:
        if tensors[name].shape != leaf.shape:
            raise ValueError(f"{path}: tensor {name} has shape {tensors[name].shape}, expected {leaf.shape}")
    leaves = [jnp.asarray(tensors[name], leaf.dtype) for name, leaf in named]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)
