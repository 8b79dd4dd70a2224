"""The weights that come with the package, each with a card of how it was made."""

import importlib.resources
import os
from pathlib import Path
from typing import Any

from jaxpurify.networks.freeze import Frozen
from jaxpurify.networks.stored import load_network

# Kind of model and height, width and channels of its images.
BUNDLED: dict[str, tuple[str, tuple[int, int, int]]] = {
    "digits-ebm": ("energy", (8, 8, 1)),
    "digits-ddpm": ("noise", (8, 8, 1)),
    "cifar10-ebm": ("energy", (32, 32, 3)),
    "cifar10-ddpm": ("noise", (32, 32, 3)),
}


def load_weights(name: str) -> tuple[Frozen, dict[str, Any]]:
    """A network and its card: bundled weights by name, others by the path of a `.safetensors` file.

    Raises:
      ValueError: neither a bundled name nor a readable file.
    """
    if not isinstance(name, str | os.PathLike):
        raise ValueError(f"weights are {name!r}; a file or one of {', '.join(BUNDLED)} is needed, in quotes")
    if name in BUNDLED:
        return load_network(bundled_path(name))
    if not Path(name).is_file():
        raise ValueError(f"no weights {name!r}: neither a file nor bundled ({', '.join(BUNDLED)})")
    return load_network(name)


def load(name: str) -> Frozen:
    """The network behind a bundled name or a `.safetensors` file, as a callable; see `load_weights`."""
    return load_weights(name)[0]


def bundled_path(name: str) -> Path:
    """Where the bundled weights called `name` lie in the installed package."""
    return Path(str(importlib.resources.files("jaxpurify.weights").joinpath(f"{name}.safetensors")))


def bundled_for(kind: str, shape: tuple[int, ...]) -> str:
    """The bundled weights of a kind (`energy` or `noise`) for images [H, W, C].

    Raises:
      ValueError: none of that kind fit images of this shape.
    """
    for name, (known_kind, known_shape) in BUNDLED.items():
        if known_kind == kind and known_shape == tuple(shape):
            return name
    known = ", ".join("x".join(map(str, each)) for known_kind, each in BUNDLED.values() if known_kind == kind)
    size = "x".join(map(str, shape))
    raise ValueError(f"no bundled {kind} model for {size} images (there are {known}); give weights='FILE.safetensors'")
