"""The one place that names a mesh: how arrays are laid over devices.

One mesh with the axes `("replica", "data")`: different experiments (seeds, poisons) over `replica`, one
batch over `data`. Programs are `jit` with `NamedSharding`; purification compiles without collectives.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

# The axes of the mesh over which one batch is split where there is a single experiment.
BATCH_AXES = ("replica", "data")


def data_mesh(devices: Sequence[jax.Device] | None = None, *, replicas: int = 1) -> Mesh:
    """A mesh of `replicas` × (all others) over `devices` (default: all of this process).

    Several hosts (`jax.distributed`) do not share a batch: each has a part of the images.

    Raises:
      ValueError: `replicas` does not divide the number of devices.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    if replicas < 1 or len(devices) % replicas:
        raise ValueError(f"replicas={replicas} does not divide {len(devices)} devices")
    shape = (replicas, len(devices) // replicas)
    return Mesh(np.array(devices).reshape(shape), ("replica", "data"), axis_types=(AxisType.Auto,) * 2)


def batch_mesh(batch_size: int) -> Mesh:
    """A mesh of as many of this process's devices as can share a batch evenly."""
    share = max(count for count in range(1, jax.local_device_count() + 1) if batch_size % count == 0)
    return data_mesh(jax.local_devices()[:share])


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Puts a full copy of every leaf on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(mesh: Mesh, tree: Any, *axes: str | tuple[str, ...] | None) -> Any:
    """Splits every leaf over the named mesh axes, one entry an array axis; by default the first over all devices.

    Raises:
      ValueError: an axis whose length is no multiple of its number of devices.
    """
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*(axes or (BATCH_AXES,)))))


def on_shares(mesh: Mesh, function: Callable[..., Any], rows: Any, *others: Any) -> Any:
    """`function(rows, *others)` on every device with its share of `rows`, and all of the others; inside `jit`.

    The devices compute by themselves and must agree on the result (`jax.lax.pmean` over `BATCH_AXES`).
    """
    copied = PartitionSpec()
    shares = (PartitionSpec(BATCH_AXES), *(copied for _ in others))
    return jax.shard_map(function, mesh=mesh, in_specs=shares, out_specs=copied)(rows, *others)


def by_shares(mesh: Mesh, function: Callable[..., Any], rows: Any, *others: Any) -> Any:
    """`function(rows, *others)` on every device with its share of `rows`, side by side again; inside `jit`.

    No device hears of another, not even in a gradient with respect to `others`, which all of them hold.
    """
    share, copied = PartitionSpec(BATCH_AXES), PartitionSpec()
    specs = (share, *(copied for _ in others))
    # Unchecked: else such gradients would be summed over the devices.
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=share, check_vma=False)(rows, *others)


def by_columns(mesh: Mesh, function: Callable[..., Any], table: Any, rows: Any, *others: Any) -> Any:
    """`function(table, rows, *others)` on every device with its share of columns and rows; inside `jit`.

    `table` is split along its second axis and `rows` along the first. The function returns what all devices agree on
    (`jax.lax.pmean` over `BATCH_AXES`), and its share of a table like the given one.
    """
    columns, copied = PartitionSpec(None, BATCH_AXES), PartitionSpec()
    specs = (columns, PartitionSpec(BATCH_AXES), *(copied for _ in others))
    # Unchecked, as above: gradients are summed where the function says so.
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=(copied, columns), check_vma=False)
    return mapped(table, rows, *others)
