"""Figures for reports: image triples and histograms as PNG inside HTML, the same bytes for the same input."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np
from PIL import Image

AMPLIFICATIONS = (64, 32, 16, 8, 4, 2, 1)
PANEL = 96  # smallest side of a panel in pixels: an 8x8 digit is shown at 12 pixels a pixel
BINS = 50

# Light and dark variants of one palette that colour-blind readers can tell apart (blue, orange, green).
SERIES = {"light": ("#1f6fb2", "#c8511b", "#1b8a6b", "#7a5195"), "dark": ("#6db3f2", "#f2915c", "#4fc9a4", "#c39be0")}
INK = {"light": ("#46505c", "#d5dae0"), "dark": ("#aeb8c4", "#39424d")}


def image_grid(
    before: np.ndarray, after: np.ndarray, captions: Sequence[str] = (), *, amplify: float | int | None = None
) -> str:
    """HTML with one card an image: before, after and the amplified difference, and a caption.

    The difference panel shows `clip(0.5 + amplify * (after - before), 0, 1)`: mid-grey is unchanged. The factor
    is stated in the page. Small images are enlarged without smoothing.

    Args:
      before: images [N, H, W, C], uint8 or float in [0, 1], with 1 or 3 channels.
      after: the same images, changed.
      captions: N texts, or none; what follows the first line is set smaller.
      amplify: the factor; by default the largest power of two up to 64 that leaves 99.5 % of values unclipped.

    Raises:
      ValueError: shapes, dtypes or counts do not fit.
    """
    before, after = as_float(before, "before"), as_float(after, "after")
    if before.shape != after.shape:
        raise ValueError(f"before {before.shape} and after {after.shape} must have the same shape")
    if captions and len(captions) != len(before):
        raise ValueError(f"{len(captions)} captions for {len(before)} images; give one each, or none")
    factor = amplification(after - before) if amplify is None else amplify
    if factor <= 0:
        raise ValueError(f"amplify={factor} must be above 0")
    cards = []
    for position in range(len(before)):
        difference = 0.5 + factor * (after[position] - before[position])
        panels = ((before[position], "before"), (after[position], "after"), (difference, f"difference ×{factor:g}"))
        shown = "".join(
            f'<div class="panel"><img src="{data_uri(image_png(pixels))}" alt="{name}"><span>{name}</span></div>'
            for pixels, name in panels
        )
        caption = _caption(captions[position]) if captions else ""
        cards.append(f'<figure class="card">{caption}<div class="panels">{shown}</div></figure>')
    note = f"Difference: (after − before) × {factor:g}, mid-grey is unchanged."
    return f'<p class="legend">{note}</p><div class="grid">{"".join(cards)}</div>'


def amplification(difference: np.ndarray) -> int:
    """The largest power of two up to 64 by which 99.5 % of the values stay within ±0.5."""
    largest = float(np.quantile(np.abs(difference), 0.995)) if difference.size else 0.0
    if largest == 0:
        return 1
    return next((factor for factor in AMPLIFICATIONS if factor * largest <= 0.5), 1)


def image_png(image: np.ndarray) -> bytes:
    """One float image [H, W, C] in [0, 1] as PNG, repeated pixel by pixel up to at least 96 on the shorter side."""
    levels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    times = -(-PANEL // min(levels.shape[:2]))
    levels = levels.repeat(times, axis=0).repeat(times, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def histogram(series: Mapping[str, Any], *, label: str, scheme: str = "light") -> bytes:
    """PNG of overlaid histograms with common bins; the height is the share of a series' values in the bin.

    Drawn through `Figure` alone, so no global plotting state is read or changed. Values that are not finite are
    left out (`histogram_figure` states how many). Transparent, in colours for a `light` or `dark` page.

    Raises:
      ValueError: there are no finite values at all.
    """
    finite = {name: _finite(values) for name, values in series.items()}
    everything = np.concatenate(list(finite.values()) or [np.zeros(0)])
    if not everything.size:
        raise ValueError(f"histogram {label!r} has no finite values; expected at least one number")
    # Bars of single images say nothing: few images get wide bins.
    largest = max(values.size for values in finite.values())
    edges = bin_edges(everything, bins=min(BINS, max(12, round(2 * largest**0.5))))
    figure, axes = empty_chart(scheme, label, "share of images")
    for position, (name, values) in enumerate(finite.items()):
        if not values.size:
            continue
        counts, _ = np.histogram(values, bins=edges)
        colour = SERIES[scheme][position % len(SERIES[scheme])]
        style = ("-", (0, (5, 1.5)), (0, (1.5, 1)))[position % 3]
        axes.stairs(counts / values.size, edges, fill=True, color=colour, alpha=0.22, linewidth=0)
        axes.stairs(counts / values.size, edges, color=colour, linewidth=1.4, linestyle=style, label=name)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    return chart_png(figure, len(finite), scheme)


def empty_chart(scheme: str, across: str, up: str) -> tuple[Figure, Any]:
    """A transparent figure and its axes, with their names, for a `light` or `dark` page."""
    text, line = INK[scheme]
    figure = Figure(figsize=(5.4, 2.7), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_xlabel(across, color=text, fontsize=9)
    axes.set_ylabel(up, color=text, fontsize=9)
    axes.tick_params(colors=text, labelsize=8, length=0)
    axes.grid(axis="y", color=line, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(line)
    return figure, axes


def chart_png(figure: Figure, series: int, scheme: str) -> bytes:
    """The figure as PNG, with a legend above it if there are several series."""
    if series > 1:
        columns = series if series <= 3 else 2
        colour = INK[scheme][0]
        figure.legend(
            loc="outside upper left", ncols=columns, frameon=False, labelcolor=colour, fontsize=9, borderaxespad=0
        )
    buffer = io.BytesIO()
    figure.canvas.print_png(buffer, metadata={"Software": None})  # pyrefly: ignore[missing-attribute]
    return buffer.getvalue()


def histogram_figure(series: Mapping[str, Any], *, label: str, caption: str = "") -> str:
    """HTML of one histogram in both colour schemes, with count, median and 5–95 % range of each series in words."""
    light, dark = (data_uri(histogram(series, label=label, scheme=scheme)) for scheme in ("light", "dark"))
    items = "".join(f"<li><b>{escape(name)}</b> {_in_words(values)}</li>" for name, values in series.items())
    heading = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    alternative = escape(f"Histogram of {label}: {', '.join(series)}")
    return (
        f'<figure class="chart">{heading}<picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{alternative}"></picture><ul class="statistics">{items}</ul></figure>'
    )


def bin_edges(values: np.ndarray, *, bins: int = BINS) -> np.ndarray:
    """Edges of about `bins` bins. Whole numbers get bins of equally many, or the bars would beat like a comb."""
    low, high = values.min(), values.max()
    if np.any(values != np.round(values)):
        return np.histogram_bin_edges(values, bins=bins)
    width = max(1, -(-int(high - low + 1) // bins))
    return np.arange(low - 0.5, high + width + 0.5, width)


def as_float(images: np.ndarray, name: str) -> np.ndarray:
    """Images [N, H, W, C] as float32 in [0, 1], from uint8 or float.

    Raises:
      ValueError: not four axes, not 1 or 3 channels, or of another type.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"{name} images have shape {images.shape}; expected [N, H, W, 1 or 3]")
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 255
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{name} images have dtype {images.dtype}; expected uint8, or float in [0, 1]")
    return images.astype(np.float32)


def data_uri(png: bytes) -> str:
    """A PNG file as a URI that an HTML page can hold."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _caption(text: str) -> str:
    first, *rest = text.split("\n", 1)
    small = f"<small>{escape(rest[0])}</small>" if rest else ""
    return f"<figcaption>{escape(first)}{small}</figcaption>"


def _finite(values: Any) -> np.ndarray:
    flat = np.asarray(values, dtype=np.float64).ravel()
    return flat[np.isfinite(flat)]


def _in_words(values: Any) -> str:
    finite = _finite(values)
    lost = np.size(values) - finite.size
    words = [f"n = {finite.size:,}"]
    if finite.size:
        low, median, high = np.quantile(finite, (0.05, 0.5, 0.95))
        words += [f"median {median:.3g}", f"5–95 % {low:.3g} to {high:.3g}"]
    if lost:
        words.append(f"{lost:,} not finite, left out")
    return escape(" · ".join(words).replace("-", "−"))
