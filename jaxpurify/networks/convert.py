"""Published PyTorch weights into our networks."""

from collections.abc import Mapping
import json
import os
import re
from typing import Any

from flax import nnx
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxpurify.networks.published import PUBLISHED, Published

# Names that diffusers gave to attention layers in older files.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}


def from_torch(name: str, tensors: Mapping[str, Any] | str | os.PathLike, **options: Any) -> nnx.Module:
    """One of our networks with published PyTorch weights.

    Args:
      name: `conv_energy`, `sngan_energy`, `unet2d`, `resnet18`, `resnet34`, `mobilenet_v2`, `densenet121`,
        `hlb_s` or `hlb_m`.
      tensors: dict of arrays under the published names, convolutions as [out, in, height, width]; or the path
        of a `.safetensors` file. `num_batches_tracked` is ignored, a common prefix `module.` is dropped.
      **options: given to our constructor, over what the shapes tell (widths, classes, channels). Classifiers
        of 3-channel images normalise with CIFAR-10's mean and deviation unless `mean` and `std` say otherwise.
        `unet2d` takes `config`, the fields of the published config.json as a dict or the file's path; without
        it the head size is 8 and there are 32 groups. The ResNets take `size`, the height of the images.

    Returns:
      The network, in training mode as every new one; `freeze` it to use it.

    Raises:
      ValueError: an unknown name; tensors that are missing or left over, all listed; a tensor of another shape;
        a config of a network that ours is not; a tensor that NumPy cannot read.
    """
    if name not in PUBLISHED:
        raise ValueError(f"no published network is called {name!r}; known are {', '.join(PUBLISHED)}")
    published = PUBLISHED[name]
    arrays = _read(tensors)
    if isinstance(options.get("config"), str | os.PathLike):
        options["config"] = _read_config(options["config"])
    shapes = {tensor: array.shape for tensor, array in arrays.items()}
    try:
        # Only the structure: drawing random weights that are thrown away would cost seconds.
        abstract = nnx.eval_shape(lambda: published.build(shapes, dict(options) | {"rngs": nnx.Rngs(0)}))
    except (TypeError, ValueError) as error:  # an option that the constructor does not take, or a wrong shape
        raise ValueError(f"{name}: {error}") from None
    graphdef, state = nnx.split(abstract)
    flat = nnx.to_flat_state(state)
    names = [_tensor_name(path, published) for path, _ in flat]
    missing, left = sorted(set(names) - set(arrays)), sorted(set(arrays) - set(names))
    if missing or left:
        raise ValueError(f"{name}: missing tensors: {_listed(missing)}; left-over tensors: {_listed(left)}")
    filled = []
    for (path, variable), tensor in zip(flat, names, strict=True):
        array = _to_ours(name, tensor, arrays[tensor], variable.shape, published)
        filled.append((path, variable.replace(jnp.asarray(array))))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def _read(tensors: Mapping[str, Any] | str | os.PathLike) -> dict[str, np.ndarray]:
    if isinstance(tensors, str | os.PathLike):
        if not os.path.isfile(tensors) or not os.fspath(tensors).endswith(".safetensors"):
            raise ValueError(f"tensors is {os.fspath(tensors)!r}; it must be a dict or an existing .safetensors file")
        try:
            tensors = load_file(tensors)
        except SafetensorError as error:
            raise ValueError(f"{os.fspath(tensors)} is not a readable .safetensors file ({error})") from None
    if not isinstance(tensors, Mapping):
        raise ValueError(f"tensors is of {type(tensors)}; it must be a dict or an existing .safetensors file")
    arrays = {name: _array(name, array) for name, array in tensors.items() if "num_batches_tracked" not in name}
    if not arrays:
        raise ValueError("tensors is empty; it must hold the weights of the network")
    if all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    old = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
    return {
        old.sub(lambda match: f"{match[1]}.{_OLD_ATTENTION[match[2]]}.", name): array for name, array in arrays.items()
    }


def _array(name: str, array: Any) -> np.ndarray:
    try:
        array = np.asarray(array)
        if array.dtype.kind in "biuc":  # quantised, say
            raise TypeError(f"it is of {array.dtype}")
        with np.errstate(over="ignore"):  # infinite then, and refused
            array = array.astype(np.float32)
    except (TypeError, ValueError, RuntimeError) as error:  # PyTorch's: a parameter, or bfloat16
        raise ValueError(
            f"tensor {name} is no array of floating-point numbers ({error}); of PyTorch's, .detach().float()"
        ) from None
    if not np.isfinite(array).all():
        raise ValueError(f"tensor {name} has values that are NaN, infinite or beyond float32")
    return array


def _read_config(path: str | os.PathLike) -> dict[str, Any]:
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"config {os.fspath(path)} is not a readable JSON file ({error})") from None


def _tensor_name(path: tuple[Any, ...], published: Published) -> str:
    layer = ".".join(str(part) for part in path[:-1])
    return f"{published.layer(layer)}.{_LEAVES[path[-1]]}"


def _to_ours(name: str, tensor: str, array: np.ndarray, shape: tuple[int, ...], published: Published) -> np.ndarray:
    """The array in our layout: HWIO for convolutions, [in, out] for linear layers."""
    expected = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[len(shape)]
    expected_shape = tuple(shape[axis] for axis in expected)
    if array.shape != expected_shape:
        raise ValueError(f"{name}: tensor {tensor} has shape {array.shape}; expected {expected_shape}")
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if array.ndim == 2 and tensor == f"{published.head}.weight":
        # PyTorch flattened [512, height, width]; ours is [height, width, 512].
        side = round((array.shape[1] / 512) ** 0.5)
        array = array.reshape(-1, 512, side, side).transpose(0, 2, 3, 1).reshape(array.shape)
    return array.T if array.ndim == 2 else array


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"
