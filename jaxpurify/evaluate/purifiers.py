"""Purifiers by name: what a command line says and a results row records."""

from collections.abc import Callable
import functools
import hashlib
import re
from typing import Any

import jax
import numpy as np

from jaxpurify.evaluate.specs import Spec, parse_specs
from jaxpurify.purify.combine import Average, Identity, Repeat, chain
from jaxpurify.purify.diffusion import Diffusion
from jaxpurify.purify.filter import TopEnergy, check_filters
from jaxpurify.purify.jpeg import Jpeg
from jaxpurify.purify.langevin import Langevin
from jaxpurify.purify.schedule import Schedule
from jaxpurify.purify.truncate import Truncate
from jaxpurify.types import Energy, Purifier
from jaxpurify.weights.catalogue import bundled_for, load_weights

Shape = tuple[int, ...]

# Those called puregen have the published settings (PureGen, arXiv:2405.18627) with the weights for the image size.
# The card of an energy gives step size and temperature: the published ones for 32 x 32, others for digits. For Reps
# the paper's table prints [10, 50, 5] and its appendix 7 repetitions; the table is followed. 125 timesteps, as in
# Filt, are also the published ones for transfer learning and for ε = 16/255. Those called digits were chosen for the
# bundled models of 8 x 8 pixels. Those called fast make fewer network calls than the exact one beside them: a third
# of the Langevin steps, each √3 as long as the published ones (for the energy that has those), with the slope at half
# of its noise and a lower temperature, measured in experiments/puregen_table1.py, and strided denoising of the same
# noise, measured in experiments/equal_strength.py.
PRESETS: dict[str, str] = {
    "puregen-ebm": "langevin(steps=150)",
    "puregen-ddpm": "diffusion(timestep=75)",
    "puregen-naive": "langevin(steps=150)|diffusion(timestep=75)",
    "puregen-reps": "repeat('langevin(steps=10)|diffusion(timestep=50)', 5)",
    "puregen-filt": "filt('diffusion(timestep=125)', fraction=0.5)",
    "puregen-filt-compat": "filt('diffusion(timestep=125)', fraction=0.5, compat=True)",
    "exact": "puregen-ddpm",
    "fast": "diffusion(timestep=75, steps=5)",
    "filt-fast": "filt('diffusion(timestep=125, steps=5)', fraction=0.5)",
    "ebm-exact": "puregen-ebm",
    "ebm-fast": "langevin(steps=50, step_size=0.01083, temperature=0.85e-4, midpoint=True, weights='cifar10-ebm')",
    "digits-ebm": "langevin(steps=150, weights='digits-ebm')",
    "digits-ddpm": "diffusion(timestep=75, steps=15, weights='digits-ddpm')",
    "digits-both": "langevin(steps=75, weights='digits-ebm')|diffusion(timestep=50, steps=10, weights='digits-ddpm')",
}


def make_purifier(spec: str, shape: Shape) -> Purifier:
    """The purifier that `spec` describes, for images of `shape` [H, W, C].

    Args:
      spec: a preset, or purifiers joined by `|`, such as `langevin(steps=150)|diffusion(timestep=75)`. Models are
        the bundled ones for the shape, or `weights='FILE.safetensors'`. `diffusion` uses the noise schedule that
        its weights were trained with; `schedule='cosine'` or `'linear'` says otherwise. `filt` ranks by an energy and
        must be the outermost purifier.

    Raises:
      ValueError: unknown names (the known ones are listed), options or values; no weights for the shape.
    """
    stages = [_stage(part, shape) for part in parse_specs(PRESETS.get(spec.strip(), spec))]
    purifier = stages[0] if len(stages) == 1 else chain(*stages)
    check_filters(purifier)
    return purifier


@functools.lru_cache
def weights_digest(spec: str, shape: Shape) -> str | None:
    """The first 12 hexadecimal digits of the SHA-256 of a purifier's arrays; None for one without any.

    Bundled models may be trained anew under the same name: a row says by this which ones it was made with.
    """
    leaves = jax.tree.leaves(make_purifier(spec, shape))
    if not leaves:
        return None
    digest = hashlib.sha256()
    for leaf in leaves:
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:12]


@functools.lru_cache
def known_parts(spec: str, shape: Shape) -> frozenset[str]:
    """What there is to know of a purifier: hashes of its networks' arrays, and stages without any in words.

    Langevin dynamics of another length or step size has the same energy, and so the same parts.
    """
    found: set[str] = set()
    for part in parse_specs(PRESETS.get(spec.strip(), spec)):
        stage = _stage(part, shape)
        arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(stage) if np.ndim(leaf) > 1]
        found |= {hashlib.sha256(array.tobytes()).hexdigest()[:12] for array in arrays} or {repr(stage)}
    return frozenset(found)


def energy_for(shape: Shape, weights: str | None = None) -> Energy:
    """The energy that `langevin` uses for images of `shape`: bundled, or from a file."""
    name = weights or bundled_for("energy", shape)
    energy = load_weights(name)[0]
    _check_kind("energy", name, energy, shape)
    return energy


def find_energy(purifier: Purifier) -> Energy | None:
    """The first energy inside a purifier, however it is composed; None where there is none."""
    if getattr(purifier, "energy", None) is not None:
        return purifier.energy
    parts = (*getattr(purifier, "stages", ()), getattr(purifier, "purifier", None))
    found = (find_energy(part) for part in parts if part is not None)
    return next((energy for energy in found if energy is not None), None)


def _check_kind(kind: str, name: str, network: Any, shape: Shape) -> None:
    """Refuses what is no `energy` (one number an image) or `noise` predictor (an image for an image and a timestep)."""
    images, timesteps = jax.ShapeDtypeStruct((2, *shape), "float32"), jax.ShapeDtypeStruct((2,), "int32")
    given, wanted = ((images,), (2,)) if kind == "energy" else ((images, timesteps), (2, *shape))
    try:
        found = jax.eval_shape(_answer, network, *given).shape
    except (TypeError, ValueError) as error:
        raise ValueError(f"weights {name!r} hold no {kind} network for images of {shape}: {error}") from error
    if found != wanted:
        raise ValueError(f"weights {name!r} hold no {kind} network for images of {shape}; it answers with {found}")


@jax.jit  # which remembers that it traced a network of this structure
def _answer(network, *given):
    return network(*given)


def _stage(part: Spec, shape: Shape) -> Purifier:
    if part.name in PRESETS:
        if part.positional or part.options:
            raise ValueError(f"purifier {part.name!r} is a preset and takes no options; it means {PRESETS[part.name]}")
        return make_purifier(PRESETS[part.name], shape)
    if part.name not in PURIFIERS:
        raise ValueError(f"unknown purifier {part.name!r}; known: {', '.join([*PURIFIERS, *PRESETS])}")
    try:
        return PURIFIERS[part.name](shape, *part.positional, **part.options)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown:
            raise ValueError(f"purifier {part.name!r} takes no option {unknown[1]!r}") from None
        raise ValueError(f"purifier {part.name!r}: {str(error).removeprefix('_' + part.name + '() ')}") from None


def _identity(shape: Shape) -> Purifier:
    return Identity()


def _jpeg(shape: Shape, quality: int = 50) -> Purifier:
    return Jpeg(quality)


def _truncate(shape: Shape) -> Purifier:
    return Truncate()


def _langevin(shape: Shape, *, weights: str | None = None, **options: Any) -> Purifier:
    name = weights or bundled_for("energy", shape)
    energy, card = load_weights(name)
    purifier = Langevin(energy, **{**card.get("langevin", {}), **options})
    _check_kind("energy", name, energy, shape)
    return purifier


def _diffusion(shape: Shape, *, weights: str | None = None, schedule: str | None = None, **options: Any) -> Purifier:
    name = weights or bundled_for("noise", shape)
    noise, card = load_weights(name)
    stored = card.get("recipe", {}).get("schedule", {})
    trained_with = Schedule(**stored) if isinstance(stored, dict) else Schedule()  # that of an energy is a name
    if schedule is not None and schedule != trained_with.kind:
        trained_with = Schedule(kind=schedule)
    settings: dict[str, Any] = {**card.get("diffusion", {}), **options}
    purifier = Diffusion(noise, schedule=trained_with, trained=card.get("max_timestep"), **settings)
    _check_kind("noise", name, noise, shape)
    return purifier


def _repeat(shape: Shape, spec: Any, count: int) -> Purifier:
    return Repeat(_inner(spec, shape), count)


def _average(shape: Shape, spec: Any, count: int = 4, kind: str = "mean") -> Purifier:
    return Average(_inner(spec, shape), count, kind)


def _filt(
    shape: Shape, spec: Any, fraction: float = 0.5, compat: bool = False, *, weights: str | None = None
) -> Purifier:
    return TopEnergy(energy_for(shape, weights), _inner(spec, shape), fraction, compat)


def _inner(spec: Any, shape: Shape) -> Purifier:
    if not isinstance(spec, str):
        raise ValueError(f"purifier {spec!r} inside of another one; it is written in quotes, as 'langevin(steps=150)'")
    return make_purifier(spec, shape)


PURIFIERS: dict[str, Callable[..., Purifier]] = {
    "identity": _identity,
    "jpeg": _jpeg,
    "langevin": _langevin,
    "diffusion": _diffusion,
    "repeat": _repeat,
    "average": _average,
    "filt": _filt,
    "truncate": _truncate,
}
