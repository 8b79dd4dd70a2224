"""Networks on the command line: a name or spec, completed with what the data say, and tried before any work."""

import functools
import inspect
from typing import Any

from flax import nnx
import jax
from jaxtyping import Array, Key
import numpy as np

from jaxpurify.data.dataset import Dataset
from jaxpurify.evaluate.specs import parse_spec
from jaxpurify.networks.catalogue import NETWORKS
from jaxpurify.networks.freeze import freeze
from jaxpurify.networks.stored import build
from jaxpurify.random import named

CHUNK = 4096


def network_options(spec: str, dataset: Dataset, **given: Any) -> tuple[str, dict[str, Any]]:
    """The name and the constructor's options of a network for `dataset`.

    Args:
      spec: a name, or `name(option=value, …)`.
      dataset: gives channels, size, classes and mean and standard deviation, where the network takes them.
      given: options from flags of their own; None is not given. They come before those of the data.

    Raises:
      ValueError: unknown network, an option that it does not take or that is given twice, another number of classes.
    """
    part = parse_spec(spec)
    if part.name not in NETWORKS:
        raise ValueError(f"unknown network {part.name!r}; known: {', '.join(sorted(NETWORKS))}")
    if part.positional:
        raise ValueError(f"network {spec!r}: options are written name=value")
    parameters = constructor_parameters(part.name)
    mean, std = channel_statistics(dataset.images)
    options: dict[str, Any] = {"channels": dataset.images.shape[-1], "size": dataset.images.shape[1]}
    options["classes"] = len(dataset.classes)
    options = {name: value for name, value in options.items() if name in parameters}
    if "classes" in options:
        options |= {"mean": mean, "std": std}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name in part.options:
            raise ValueError(f"network {spec!r} and --{name.replace('_', '-')} {given[name]} say the same twice")
    if "classes" in options and part.options.get("classes", options["classes"]) != options["classes"]:
        raise ValueError(f"network {spec!r} for {options['classes']} classes; leave classes out, the data say it")
    options |= given
    return part.name, {**options, **part.options}


def constructor_parameters(name: str) -> dict[str, inspect.Parameter]:
    """The options that the constructor of the network `name` takes, apart from `rngs`."""
    constructor, bound = NETWORKS[name], 0
    if isinstance(constructor, functools.partial):
        constructor, bound = constructor.func, len(constructor.args)
    if isinstance(constructor, type):  # NNX hides the signature of a module behind that of its metaclass
        constructor, bound = constructor.__init__, bound + 1
    parameters = list(inspect.signature(constructor).parameters.values())[bound:]
    return {each.name: each for each in parameters if each.name != "rngs"}


def make_network(
    network: str, options: dict[str, Any], key: Key[Array, ""], shape: tuple[int, ...], *, kind: str
) -> nnx.Module:
    """A freshly made network, after checking that it takes images of `shape` [H, W, C] and answers as its kind does.

    Args:
      network, options: as from `network_options`.
      key: its stream `weights` initialises the network; not consumed otherwise.
      shape: of one image.
      kind: `energy` (one number an image), `noise` (an image an image) or `classifier` (logits).

    Raises:
      ValueError: the network does not take such images, or is of another kind.
    """
    model = build(network, options, nnx.Rngs(named(key, "weights")))
    images = jax.ShapeDtypeStruct((2, *shape), "float32")
    times = (jax.ShapeDtypeStruct((2,), "int32"),) if kind == "noise" else ()
    wanted = {"energy": (2,), "noise": (2, *shape), "classifier": (2, options.get("classes"))}[kind]
    try:
        answer = jax.eval_shape(freeze(model), images, *times).shape
    except TypeError:  # a noise predictor takes timesteps too, the others do not
        answer = None
    if answer != wanted:
        raise ValueError(f"network {network!r} with options {options} is no {kind} network for images of shape {shape}")
    return model


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation [C] of stored images in units of [0, 1], to four digits; no deviation is zero."""
    total, square = np.zeros(images.shape[-1]), np.zeros(images.shape[-1])
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK].astype(np.float32) / 255
        total += part.sum((0, 1, 2), dtype=np.float64)
        square += np.square(part).sum((0, 1, 2), dtype=np.float64)
    count = images.size / images.shape[-1]
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    return np.round(mean, 4).tolist(), np.round(np.maximum(std, 1 / 255), 4).tolist()
