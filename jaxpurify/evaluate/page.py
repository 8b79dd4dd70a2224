"""The frame of an HTML report: one file, no scripts, nothing loaded from elsewhere, light and dark."""

from collections.abc import Mapping, Sequence
from html import escape
import os
from pathlib import Path
from typing import Any

from jaxpurify.destination import replacing

CSS = """
:root{color-scheme:light dark;--page:#f5f6f8;--card:#fff;--ink:#1b2430;--soft:#5b6775;--line:#e1e5ea;--tint:#f3f6f9;
--natural:#1f6fb2;--success:#c8511b;--track:#e8ecf0;--accent:#1f6fb2;
--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Noto Sans","Liberation Sans",sans-serif;
--mono:ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace}
@media(prefers-color-scheme:dark){:root{--page:#12161b;--card:#1a2027;--ink:#e6ebf1;--soft:#98a4b1;--line:#2c343d;
--tint:#212830;--natural:#6db3f2;--success:#f2915c;--track:#2b333c;--accent:#6db3f2}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 var(--sans)}
main{max-width:1120px;margin:0 auto;padding:40px 24px 72px}
header{margin-bottom:28px}
h1{font-size:clamp(1.55rem,4vw,2.15rem);line-height:1.2;letter-spacing:-.02em;margin:0 0 12px;text-wrap:balance}
h2{font-size:1.12rem;letter-spacing:-.01em;margin:0 0 14px}
.lead{max-width:72ch;margin:0 0 8px;color:var(--soft);font-size:1.03rem}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:22px 24px;margin-top:20px}
section>ul.notes{margin:0;padding-left:1.2em;max-width:80ch}
.legend{color:var(--soft);font-size:.84rem;max-width:92ch;margin:12px 0 0}
.legend+.grid,.legend+.charts{margin-top:14px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:20px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px 16px;min-width:0}
.tile b{display:block;font-size:1.32rem;letter-spacing:-.01em;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.tile span{color:var(--soft);font-size:.84rem}
.chips{display:flex;flex-wrap:wrap;gap:8px;margin:0 0 12px}
.chip{border:1px solid var(--line);background:var(--tint);border-radius:999px;padding:2px 12px;font-size:.84rem;
overflow-wrap:anywhere}
.chip b{color:var(--soft);font-weight:500}
.setting+.setting{margin-top:28px}
table.results{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
.results thead th{color:var(--soft);font-weight:500;font-size:.8rem;vertical-align:bottom;padding:0 12px 8px;
text-align:left;border-bottom:1px solid var(--line)}
.results th.number,.results td.number{text-align:right}
.results th.centre,.results td.centre{text-align:center}
.results td,.results tbody tr:not(.attack) th{padding:8px 12px;border-bottom:1px solid var(--line);vertical-align:top}
.results tbody tr:not(.attack) th{font-weight:500;text-align:left;overflow-wrap:anywhere}
.results tr.control th{font-weight:400;font-style:italic}
.results tr.attack th{text-align:left;font-weight:650;padding:18px 10px 6px;border-bottom:1px solid var(--line)}
.results tbody:first-of-type tr.attack th{padding-top:10px}
.results tr.attack span{font-weight:400;color:var(--soft);margin-left:8px}
.results tbody tr th:first-child,.results thead th:first-child{padding-left:0}
.results thead th:last-child,.results tbody td:last-child{padding-right:0}
.results tr.missing{color:var(--soft)}
.value{display:inline-flex;justify-content:flex-end;white-space:nowrap}
.value small{color:var(--soft);font-size:.85em;text-align:left;min-width:3.5em;padding-left:.4em;align-self:baseline}
.value{align-items:baseline}
.absent{color:var(--soft)}
.number-word{white-space:nowrap}
td.runs{white-space:nowrap}
.bar{display:block;height:3px;border-radius:2px;background:var(--track);margin-top:5px;overflow:hidden}
.bar i{display:block;height:100%;border-radius:2px}
.bar.natural i{background:var(--natural)}
.bar.success i{background:var(--success)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:14px}
figure{margin:0}
.card{border:1px solid var(--line);border-radius:10px;padding:12px;background:var(--tint);min-width:0}
.card figcaption{font-size:.86rem;font-weight:500;margin-bottom:8px;overflow-wrap:anywhere}
.card small{display:block;color:var(--soft);font-size:.8rem;font-weight:400;font-variant-numeric:tabular-nums}
.panels{display:grid;grid-template-columns:repeat(3,1fr);gap:8px}
.panel img{display:block;width:100%;image-rendering:pixelated;border-radius:5px;background:#808080}
.panel span{display:block;color:var(--soft);font-size:.75rem;margin-top:4px;text-align:center}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:24px}
.chart{max-width:560px}
.chart figcaption{font-weight:500;font-size:.92rem;margin-bottom:6px}
.chart img{display:block;width:100%;height:auto}
.statistics{list-style:none;margin:8px 0 0;padding:0;color:var(--soft);font-size:.82rem;
font-variant-numeric:tabular-nums}
.statistics b{color:var(--ink);font-weight:500;margin-right:4px}
dl.facts{display:grid;grid-template-columns:minmax(120px,max-content) 1fr;gap:0 20px;margin:0;font-size:.9rem}
.facts dt,.facts dd{padding:6px 0;border-bottom:1px solid var(--line);overflow-wrap:anywhere}
.facts dt{color:var(--soft)}
.facts dd{margin:0;font-family:var(--mono);font-size:.86em;font-variant-numeric:tabular-nums}
.facts dt:last-of-type,.facts dd:last-of-type{border-bottom:0}
footer{color:var(--soft);font-size:.82rem;margin-top:24px}
@media(max-width:860px){
main{padding:24px 14px 48px}
section{padding:18px 16px}
.tiles{grid-template-columns:repeat(2,1fr)}
.tile:last-child:nth-child(odd){grid-column:1/-1}
.results thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
table.results,.results tbody,.results tr,.results td,.results th{display:block;width:100%}
.results tbody tr:not(.attack){border:1px solid var(--line);border-radius:10px;padding:10px 12px;margin:8px 0;
background:var(--tint)}
.results tbody tr:not(.attack) th{border:0;padding:0 0 6px;font-weight:600}
.results tr.attack th{border:0;padding:16px 0 2px}
.results tr.attack span{display:block;margin:0;font-size:.86rem}
.results td,.results tbody td:last-child{border:0;padding:3px 0;display:grid;text-align:right;
grid-template-columns:1fr auto;align-items:baseline}
.results td.centre{text-align:right}
.results td::before{content:attr(data-name);color:var(--soft);text-align:left}
.results td .value small{min-width:0}
.results td .value small:empty{display:none}
.results td.absent{display:none}
.results td .bar{grid-column:1/-1;margin:2px 0 4px}
.grid{grid-template-columns:1fr}
dl.facts{grid-template-columns:1fr}
.facts dt{border:0;padding:8px 0 0}.facts dd{padding:0 0 8px}
}
@media print{body{background:#fff}section,.tile{break-inside:avoid}}
"""

# The browser itself refuses scripts and anything from elsewhere, whatever a file name or a note contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(title: str, lead: str, body: str, footer: str = "") -> str:
    """A whole HTML document. `title`, `lead` and `footer` are escaped here; `body` is HTML."""
    end = f"<footer>{escape(footer)}</footer>" if footer else ""
    paragraph = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n"
        f"<body><main><header><h1>{escape(title)}</h1>{paragraph}</header>\n{body}\n{end}</main></body></html>\n"
    )


def section(heading: str, body: str) -> str:
    """One card of the page. `heading` is escaped; `body` is HTML."""
    return f"<section><h2>{escape(heading)}</h2>{body}</section>\n"


def tiles(values: Mapping[str, str]) -> str:
    """Headline figures: name to value, both escaped."""
    shown = "".join(
        f'<div class="tile"><b>{escape(v)}</b><span>{escape(name)}</span></div>' for name, v in values.items()
    )
    return f'<div class="tiles">{shown}</div>'


def facts(values: Mapping[str, Any]) -> str:
    """A list of names and values, both escaped; nested mappings become `outer.inner`."""
    shown = "".join(f"<dt>{escape(name)}</dt><dd>{escape(_text(value))}</dd>" for name, value in _flat(values))
    return f'<dl class="facts">{shown}</dl>'


def notes_list(notes: Sequence[str]) -> str:
    """Remarks as a list, escaped."""
    return f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>'


def write_page(path: str | os.PathLike[str], document: str) -> Path:
    """Writes the page, in the place of an earlier one; a reader never meets half of it."""
    with replacing(Path(path), force=True) as temporary:
        temporary.write_text(document, encoding="utf-8", newline="\n")
    return Path(path)


def duration(seconds: float | int) -> str:
    """Seconds in the unit that reads best: `0.84 s`, `95 s`, `12 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value)
