"""The page that helps to choose a purifier and its steps: what it does to the poisons of one attack."""

from collections.abc import Mapping
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxpurify.evaluate.crossing import Crossing
from jaxpurify.evaluate.curves import curves_figure
from jaxpurify.evaluate.effect import CLEAN, POISONED, PURIFIED_CLEAN, PURIFIED_POISONED, Effect
from jaxpurify.evaluate.figures import histogram_figure, image_grid
from jaxpurify.evaluate.page import duration, facts, page, section, tiles, write_page
from jaxpurify.records import device, versions

SHOWN = 6


def effect_report(
    path: str | os.PathLike[str],
    measured: Effect,
    crossings: Mapping[str, tuple[int, Crossing]],
    *,
    purifier: str,
    settings: Mapping[str, Any],
    seconds: float | int | None = None,
    chosen: bool = False,
) -> Path:
    """Writes energies with their AUROC, crossing plots, PSNR, perturbation survival and images as one HTML file.

    Args:
      path: the file to write; it appears complete or not at all.
      measured: of the purifier as it is.
      crossings: for every part whose steps can be varied its name, its own number of steps, and the measurement.
      purifier: its specification.
      settings: to list: data, attack, seed.
      seconds: time that all of it took, or None.
      chosen: whether `purifier` is a filter, of which only what it applies to chosen images was measured.

    Returns:
      The path.
    """
    count = len(measured.survival)
    body = tiles(_headline(measured, crossings, seconds))
    if measured.energies:
        body += section("Energies", _paragraph(_energy_words(measured)) + _energy_charts(measured))
    if crossings:
        charts = "".join(_crossing_charts(name, own, found) for name, (own, found) in crossings.items())
        body += section("How many steps", _paragraph(_CROSSING_WORDS) + f'<div class="charts">{charts}</div>')
    body += section("Fidelity", _paragraph(_FIDELITY_WORDS) + f'<div class="charts">{_fidelity_charts(measured)}</div>')
    images = {name: each[:SHOWN] for name, each in measured.images.items()}
    body += section("What the attacker changed", image_grid(images[CLEAN], images[POISONED]))
    body += section("Poisoned images, purified", image_grid(images[POISONED], images[PURIFIED_POISONED]))
    body += section("Clean images, purified", image_grid(images[CLEAN], images[PURIFIED_CLEAN]))
    body += section("Data and settings", facts({**settings, "device": device(), **versions()}))
    does = f"What {purifier} does to {'the images that it chooses' if chosen else 'poisons'}"
    ranked = " The filter's choice was left out: each image was purified as if it had been chosen." if chosen else ""
    lead = (
        f"{purifier} on {count:,} poisoned image{'' if count == 1 else 's'} and the same images before they were "
        "poisoned, purified with the same noise. These measures need no victim: they show whether the purifier has a "
        f"chance, not that the attack fails. For that, train victims (jaxpurify evaluate).{ranked}"
    )
    return write_page(path, page(does, lead, body, _FOOTER))


_FOOTER = "Written by jaxpurify. This file contains everything that it shows and loads nothing."
_CROSSING_WORDS = (
    "Distance of the purified poison to the poisoned image it started from, and to the clean image. Where the first "
    "overtakes the second the result is nearer to the clean image; published numbers of steps are those points of the "
    "published, larger models. "
    "Every part is varied on its own, the others left out. Bands: the middle half of the images."
)
_FIDELITY_WORDS = (
    "PSNR to the clean image, in decibel: higher is nearer; what purification costs clean images is that of "
    "“purified clean”. Survival: the length of what is left of the perturbation over its length, "
    "‖Ψ(x + δ) − Ψ(x)‖ / ‖δ‖. Rounding to 8 bits alone can leave a few hundredths."
)


def _headline(
    measured: Effect, crossings: Mapping[str, tuple[int, Crossing]], seconds: float | int | None
) -> dict[str, str]:
    headline = {"poisoned images": f"{len(measured.survival):,}"}
    if measured.auroc is not None and measured.auroc_purified is not None:
        headline["AUROC, poisoned above clean"] = f"{measured.auroc:.3f}"
        headline["AUROC after purification"] = f"{measured.auroc_purified:.3f}"
    headline["median survival of the perturbation"] = f"{np.median(measured.survival):.2f}"
    headline["median PSNR of purified clean images"] = _decibel(np.median(measured.psnr[PURIFIED_CLEAN]))
    for name, (own, found) in crossings.items():
        point = "not reached" if found.point is None else f"{found.point:.0f}"
        headline[f"crossing, {name} (used: {own})"] = point
    if seconds is not None:
        headline["time"] = duration(seconds)
    return headline


def _energy_words(measured: Effect) -> str:
    return (
        f"Low means natural. A poisoned image has a higher energy than a clean one with probability "
        f"{measured.auroc:.3f} (AUROC; 0.5 says nothing), after purification of both {measured.auroc_purified:.3f}. "
        "With no difference before, an energy does not see this attack, and ranking by it does not help."
    )


def _energy_charts(measured: Effect) -> str:
    label = "energy (low: natural)"
    before = {name: measured.energies[name] for name in (CLEAN, POISONED)}
    after = {name: measured.energies[name] for name in (PURIFIED_CLEAN, PURIFIED_POISONED)}
    charts = histogram_figure(before, label=label, caption="Before purification")
    return f'<div class="charts">{charts}{histogram_figure(after, label=label, caption="After purification")}</div>'


def _crossing_charts(name: str, own: int, found: Crossing) -> str:
    marks = {"used": float(own)} if own <= found.steps[-1] else {}
    if found.point is None:
        words = "Up to here the purifier never moves further than the clean image is away."
    else:
        marks[f"crossing {found.point:.0f}"] = found.point
        words = f"They cross at {found.point:.0f} {name}."
    distances = {"to the poisoned image": found.to_poisoned, "to the clean image": found.to_clean}
    left = curves_figure(
        found.steps, distances, label=name, unit="L2 distance", caption=f"Crossing, {name}", marks=marks, words=[words]
    )
    right = curves_figure(
        found.steps, {"survival": found.survival}, label=name, unit="survival", caption=f"Survival, {name}"
    )
    return left + right


def _fidelity_charts(measured: Effect) -> str:
    charts = histogram_figure(measured.psnr, label="PSNR to the clean image, dB", caption="PSNR")
    return charts + histogram_figure(
        {"survival": measured.survival}, label="perturbation survival", caption="Perturbation survival"
    )


def _decibel(value: float) -> str:
    return "∞" if np.isinf(value) else f"{value:.1f} dB"


def _paragraph(text: str) -> str:
    return f'<p class="legend">{text}</p>'
