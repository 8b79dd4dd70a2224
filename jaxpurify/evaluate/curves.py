"""Curves for reports: a mean and its spread over some number, in both colour schemes of a page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from jaxpurify.evaluate.figures import INK, SERIES, chart_png, data_uri, empty_chart


def curves(
    across: Any,
    series: Mapping[str, Any],
    *,
    label: str,
    unit: str,
    marks: Mapping[str, float] | None = None,
    scheme: str = "light",
) -> bytes:
    """PNG of the mean of every series over `across`, with a band of the middle half of the images.

    Args:
      across: S ascending numbers.
      series: name to values [S, N].
      label, unit: what the axes show.
      marks: name to place of dashed vertical lines.
      scheme: colours for a `light` or a `dark` page.

    Raises:
      ValueError: a series that does not have one row for each of `across`, or values that are not finite.
    """
    across = np.asarray(across)
    figure, axes = empty_chart(scheme, label, unit)
    for position, (name, values) in enumerate(series.items()):
        values = np.asarray(values, np.float64)
        if values.ndim != 2 or len(values) != len(across) or not np.isfinite(values).all():
            raise ValueError(f"series {name!r} has the shape {values.shape}; it must be finite with {len(across)} rows")
        colour = SERIES[scheme][position % len(SERIES[scheme])]
        low, high = np.quantile(values, (0.25, 0.75), axis=1)
        axes.fill_between(across, low, high, color=colour, alpha=0.18, linewidth=0)
        style = ("-", (0, (5, 1.5)), (0, (1.5, 1)))[position % 3]
        axes.plot(across, values.mean(1), color=colour, linewidth=1.6, linestyle=style, marker="o", ms=3, label=name)
    for name, place in (marks or {}).items():
        axes.axvline(place, color=INK[scheme][0], linewidth=1, linestyle=(0, (3, 2)))
        right = place > (across[0] + across[-1]) / 2
        axes.annotate(
            name,
            (place, 0.04),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if right else 4, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            color=INK[scheme][0],
            fontsize=8,
        )
    axes.set_ylim(bottom=0)
    if len(across) > 1:
        axes.set_xlim(across[0], across[-1])
    return chart_png(figure, len(series), scheme)


def curves_figure(
    across: Any,
    series: Mapping[str, Any],
    *,
    label: str,
    unit: str,
    caption: str,
    marks: Mapping[str, float] | None = None,
    words: Sequence[str] = (),
) -> str:
    """HTML of curves in both colour schemes, with their means in words."""
    light, dark = (
        data_uri(curves(across, series, label=label, unit=unit, marks=marks, scheme=scheme))
        for scheme in ("light", "dark")
    )
    items = [
        f"<b>{escape(name)}</b> "
        + ", ".join(f"{mean:.3g} at {step}" for step, mean in zip(across, np.mean(values, 1), strict=True))
        for name, values in series.items()
    ]
    items += [escape(text) for text in words]
    listed = "".join(f"<li>{item}</li>" for item in items)
    alternative = escape(f"Curves of {', '.join(series)} over {label}")
    return (
        f'<figure class="chart"><figcaption>{escape(caption)}</figcaption><picture>'
        f'<source srcset="{dark}" media="(prefers-color-scheme: dark)"><img src="{light}" alt="{alternative}">'
        f'</picture><ul class="statistics">{listed}</ul></figure>'
    )
