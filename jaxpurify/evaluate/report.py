"""Self-contained HTML reports: what an experiment measured, and what a purifier did to a data set."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxpurify.data.dataset import Dataset
from jaxpurify.evaluate.figures import histogram_figure, image_grid
from jaxpurify.evaluate.page import duration, facts, notes_list, page, section, tiles, write_page
from jaxpurify.evaluate.table import html_table
from jaxpurify.records import device, distinct, versions

MOST_CHANGED = 25
CHUNK = 2**23  # values compared at a time, as a whole data set in wider integers takes many times its memory


def demo_report(
    path: str | os.PathLike[str],
    rows: Iterable[Mapping[str, Any]],
    *,
    title: str,
    notes: str | Sequence[str] = (),
    grids: Sequence[Mapping[str, Any]] = (),
    histograms: Sequence[Mapping[str, Any]] = (),
    configuration: Mapping[str, Any] | None = None,
) -> Path:
    """Writes what rows say as one HTML file: summary, results with their controls, images, energies, settings.

    Args:
      path: the file to write; it appears complete or not at all.
      rows: result rows, see `jaxpurify.records.make_row`.
      title: heading of the page.
      notes: the summary paragraph, or the paragraph followed by further remarks.
      grids: for each a mapping with `title` and the arguments of `figures.image_grid`
        (`before`, `after`, `captions`, `amplify`), and optionally `note`.
      histograms: for each a mapping with `title`, `label` (of the axis) and `series` (name to values), such as
        the energies of clean, poisoned and purified images.
      configuration: settings to list; versions, devices, commits and seconds are taken from the rows.

    Returns:
      The path.

    Raises:
      ValueError: there are no rows, or a grid or histogram cannot be drawn.
    """
    rows = distinct(rows)
    lead, *remarks = [notes] if isinstance(notes, str) else [*notes] or [""]
    parts = [tiles(_headline(rows)), section("Results", html_table(rows))]
    for grid in grids:
        wanted = {name: value for name, value in grid.items() if name not in ("title", "note")}
        parts.append(section(grid["title"], _paragraph(grid.get("note")) + image_grid(**wanted)))
    if histograms:
        charts = "".join(
            histogram_figure(chart["series"], label=chart["label"], caption=chart["title"]) for chart in histograms
        )
        parts.append(section("Distributions", f'<div class="charts">{charts}</div>'))
    if remarks:
        parts.append(section("Notes", notes_list(remarks)))
    if configuration:
        parts.append(section("Configuration", facts(configuration)))
    parts.append(section("Where it ran", facts(_provenance(rows))))
    return write_page(path, page(title, lead, "".join(parts), _FOOTER))


def purify_report(
    path: str | os.PathLike[str],
    dataset_before: Dataset,
    images_after: np.ndarray,
    *,
    purifier: str,
    energies_before: Any = None,
    energies_after: Any = None,
    seconds: float | int | None = None,
    names: Sequence[str] = (),
) -> Path:
    """Writes what a purifier changed as one HTML file: sizes of the changes, energies, the most changed images.

    The change of an image is measured on values in [0, 1]: L2 = sqrt(sum of squares over H, W, C), and L∞, shown
    in levels of 1/255. Large changes are where to look first; they are no proof of poison.

    Args:
      path: the file to write; it appears complete or not at all.
      dataset_before: the data set as it was read.
      images_after: uint8 [N, H, W, C], the same images in the same order.
      purifier: its specification, e.g. `langevin(steps=150)`.
      energies_before: energy of every image [N], or None.
      energies_after: the same after purification, or None.
      seconds: time that purification took, or None.
      names: file names [N]; by default those of the data set.

    Returns:
      The path.

    Raises:
      ValueError: shapes or counts do not fit, or there are no images.
    """
    before = dataset_before.images
    names = names or dataset_before.names
    count = len(before)
    if count == 0:
        raise ValueError(f"data set {dataset_before.source!r} has no images; a report needs at least one")
    if images_after.shape != before.shape or images_after.dtype != np.uint8:
        raise ValueError(
            f"images_after is {images_after.dtype} {images_after.shape}; expected uint8 {before.shape} like the data"
        )
    if names and len(names) != count:
        raise ValueError(f"{len(names)} names for {count} images; give one each, or none")
    energies = {"before": energies_before, "after": energies_after}
    energies = {name: np.asarray(values, np.float64) for name, values in energies.items() if values is not None}
    for name, values in energies.items():
        if values.shape != (count,):
            raise ValueError(f"energies_{name} has shape {values.shape}; expected ({count},), one an image")

    l2, linf = changes(before, images_after)
    order = np.argsort(-l2, kind="stable")[:MOST_CHANGED]
    captions = [_caption(dataset_before, names, int(position), l2, linf, energies) for position in order]
    headline = {
        "images": f"{count:,}",
        f"of them changed ({np.count_nonzero(linf):,})": f"{100 * np.count_nonzero(linf) / count:.1f} %",
        "median L2 change": f"{np.median(l2):.3g}",
        "largest change of a value": f"{linf.max()}/255",
    }
    if seconds is not None:
        headline["time"] = duration(seconds)
    charts = histogram_figure({"L2": l2}, label="L2 change of an image, values in [0, 1]", caption="L2 change")
    charts += histogram_figure({"L∞": linf}, label="L∞ change of an image, levels of 1/255", caption="L∞ change")
    heading = "Most changed images" if count > MOST_CHANGED else "All images, most changed first"
    shown = f"The {len(order)} of {count:,} images with the largest L2 change." if count > MOST_CHANGED else ""
    body = tiles(headline) + section("How much changed", f'<div class="charts">{charts}</div>')
    if energies:
        drawn = histogram_figure(energies, label="energy (low: natural)")
        body += section("Energy before and after", f'<div class="charts">{drawn}</div>')
    body += section(heading, _paragraph(shown) + image_grid(before[order], images_after[order], captions))
    body += section("Data and settings", facts(_settings(dataset_before, purifier, seconds)))
    lead = (
        f"{purifier} went over {count:,} image{'' if count == 1 else 's'} of {dataset_before.source or 'a data set'}; "
        "order, count and labels are unchanged. A large change shows where the purifier worked hardest. "
        "It does not show by itself that an image was poisoned."
    )
    return write_page(path, page("Purification report", lead, body, _FOOTER))


def changes(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """L2 change [N] of values in [0, 1] and largest change [N] in levels of 1/255, of uint8 images [N, H, W, C]."""
    l2, linf = np.zeros(len(before)), np.zeros(len(before), dtype=np.int64)
    step = max(1, CHUNK // int(np.prod(before.shape[1:])))
    for start in range(0, len(before), step):
        rows = slice(start, start + step)
        difference = np.abs(after[rows].astype(np.int32) - before[rows].astype(np.int32)).reshape(len(before[rows]), -1)
        l2[rows] = np.sqrt(np.square(difference).sum(axis=1)) / 255
        linf[rows] = difference.max(axis=1)
    return l2, linf


_FOOTER = "Written by jaxpurify. This file contains everything that it shows and loads nothing."


def _headline(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    seconds = [row["seconds"] for row in rows if row.get("seconds") is not None]
    attacks = {row.get("attack") for row in rows} - {"none"}
    defences = {row.get("defence") for row in rows} - {"none"}
    headline = {
        "runs": f"{len(rows):,}",
        "attacks": str(len(attacks)),
        "defences": str(len(defences)),
        "seeds": str(len({row.get("seed") for row in rows})),
    }
    if seconds:
        headline["time, all runs"] = duration(sum(seconds))
    return headline


def _provenance(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that the rows name as device, commit and version: more than one value is listed, not hidden."""
    found: dict[str, Any] = {}
    for name in ("device", "git"):
        found[name] = [str(value) for value in dict.fromkeys(row.get(name) for row in rows) if value] or None
    packages = dict.fromkeys(package for row in rows for package in row.get("versions") or {})
    for package in packages:
        versions = (row.get("versions") or {} for row in rows)
        found[package] = list(dict.fromkeys(each[package] for each in versions if package in each))
    seconds = [row["seconds"] for row in rows if row.get("seconds") is not None]
    if seconds:
        found["seconds a run, median"] = round(float(np.median(seconds)), 2)
        found["seconds, all runs"] = round(sum(seconds), 1)
    return found


def _settings(dataset: Dataset, purifier: str, seconds: float | None) -> dict[str, Any]:
    height, width, channels = dataset.images.shape[1:]
    settings: dict[str, Any] = {
        "purifier": purifier,
        "source": dataset.source,
        "images": f"{len(dataset):,} of {height} × {width} × {channels}",
        "classes": dataset.classes if len(dataset.classes) <= 20 else len(dataset.classes),
        "device": device(),
        **versions(),
    }
    if seconds is not None:
        settings["seconds"] = round(seconds, 2)
        if seconds > 0:
            settings["images a second"] = float(f"{len(dataset) / seconds:.3g}")
    return settings


def _caption(
    dataset: Dataset,
    names: Sequence[str],
    position: int,
    l2: np.ndarray,
    linf: np.ndarray,
    energies: Mapping[str, np.ndarray],
) -> str:
    parts = [f"#{position}"]
    if names:
        parts.append(names[position])
    parts.append(f"label {dataset.classes[dataset.labels[position]]}")
    numbers = [f"L2\N{NO-BREAK SPACE}{l2[position]:.3g}", f"L∞\N{NO-BREAK SPACE}{linf[position]}/255"]
    if energies:
        values = " → ".join(f"{values[position]:.3g}".replace("-", "−") for values in energies.values())
        numbers.append(f"energy {values}")
    return " · ".join(parts).replace("\n", " ") + "\n" + " · ".join(numbers)


def _paragraph(text: str | None) -> str:
    return f'<p class="legend">{escape(text)}</p>' if text else ""
