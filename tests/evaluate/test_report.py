"""Reports are one file that loads nothing, escapes everything and comes out the same twice."""

import base64
from html.parser import HTMLParser
import io
import re

import numpy as np
from PIL import Image
import pytest

from jaxpurify.data.dataset import Dataset
from jaxpurify.evaluate import figures
from jaxpurify.evaluate.report import changes, demo_report, purify_report
from tests.evaluate.test_summary_table import row

NASTY = '"><img src=x onerror=alert(1)>.png'


class Page(HTMLParser):
    """Collects tags, sources and text, and checks that every tag is closed in order."""

    VOID = frozenset({"meta", "img", "source", "wbr"})

    def __init__(self, document):
        super().__init__()
        self.open, self.tags, self.sources, self.text, self.attributes = [], [], [], "", set()
        self.feed(document)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}
        self.sources += [value for name, value in attributes if name in ("src", "srcset", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check_self_contained(document):
    page = Page(document)
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not any(name.startswith("on") for name in page.attributes)
    assert not re.search(r"https?://|url\(|@import", document)
    for source in page.sources:
        Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))).verify()
    return page


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)


def dataset(images, names=()):
    labels = np.arange(len(images), dtype=np.int32) % 2
    return Dataset(images=images, labels=labels, classes=("zero", "<one>"), names=names, source="folder:<b>")


def test_demo_report_holds_results_images_energies_and_settings(tmp_path, images):
    after = np.clip(images.astype(int) + 8, 0, 255).astype(np.uint8)
    rows = [row(), row(defence="jpeg()", poison_success=0.123), row(attack="none", natural_accuracy=0.987)]
    rows[1].pop("versions")  # of rows from elsewhere
    path = demo_report(
        tmp_path / "new" / "report.html",
        rows,
        title="Demo & <more>",
        notes=["One paragraph.", "A <remark>."],
        grids=[{"title": "Poison", "before": images[:2], "after": after[:2], "captions": ["#0", NASTY], "amplify": 8}],
        histograms=[{"title": "Energy", "label": "energy", "series": {"clean": [1.0, 2.0], "poisoned": [3.0]}}],
        configuration={"purifier": {"steps": 150, "temperature": None}, "labels changed": False},
    )
    document = path.read_text(encoding="utf-8")
    page = check_self_contained(document)
    for text in ("Demo & <more>", "One paragraph.", "A <remark>.", "12.3", "98.7", "difference ×8", NASTY):
        assert text in page.text
    for text in ("purifier.steps", "150", "jax", "seconds, all runs", "cpu x4", "undefended", "n = 2 · median 1.5"):
        assert text in page.text
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    again = path.read_bytes()
    demo_report(path, rows, title="Demo & <more>", notes="One paragraph.")
    assert path.read_bytes() != again
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_purify_report_lists_the_most_changed_images_first(tmp_path, images):
    images = images // 2
    after = images.copy()
    after[7] += 100
    after[3, 0, 0] += 51
    names = tuple(f"{position}{NASTY}" for position in range(30))
    path = purify_report(
        tmp_path / "report.html",
        dataset(images, names),
        after,
        purifier="langevin(steps=2)",
        energies_before=np.linspace(0, 1, 30),
        energies_after=[np.nan, *np.linspace(-1, 0, 29)],
        seconds=1.5,
    )
    page = check_self_contained(path.read_text(encoding="utf-8"))
    captions = re.findall(r"#(\d+) · (\d+\S+ \S+ \S+) · label (\S+)L2\s(\S+)", page.text)
    assert [int(caption[0]) for caption in captions[:3]] == [7, 3, 0] and len(captions) == 25
    assert captions[0][1:] == (f"7{NASTY}", "<one>", f"{100 / 255 * 8:.3g}")
    assert captions[1][3] == "0.2"
    for text in ("6.7 %", "100/255", "1 not finite, left out", "folder:<b>", "1.5 s", "images a second", "20"):
        assert text in page.text


def test_purify_report_of_few_unnamed_unchanged_images(tmp_path, images):
    path = purify_report(tmp_path / "report.html", dataset(images[:3]), images[:3], purifier="jpeg()")
    page = check_self_contained(path.read_text(encoding="utf-8"))
    assert "All images, most changed first" in page.text and "0.0 %" in page.text
    assert "energy" not in page.text.lower()


def test_reports_are_the_same_bytes_twice(tmp_path, images):
    after = images[::-1].copy()
    energies = {"energies_before": np.arange(30.0), "energies_after": np.arange(30.0) - 5.5}
    for name in ("first.html", "second.html"):
        purify_report(tmp_path / name, dataset(images), after, purifier="p()", **energies)
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "second.html").read_bytes()


def test_figures_are_the_same_bytes_twice_and_ignore_global_plot_settings(images):
    import matplotlib

    series = {"clean": np.random.default_rng(1).normal(size=200), "purified": np.arange(5.0)}
    first = figures.histogram(series, label="energy")
    with matplotlib.rc_context({"axes.spines.bottom": False, "axes.titlecolor": "red", "figure.figsize": (1, 1)}):
        assert figures.histogram(series, label="energy") == first
    assert figures.histogram(series, label="energy", scheme="dark") != first
    assert figures.image_png(images[0] / 255.0) == figures.image_png(images[0] / 255.0)


def test_small_images_are_enlarged_pixel_by_pixel(images):
    decoded = np.asarray(Image.open(io.BytesIO(figures.image_png(images[0].astype(np.float32) / 255))))
    np.testing.assert_array_equal(decoded, np.kron(images[0, ..., 0], np.ones((12, 12), np.uint8)))
    colour = np.zeros((200, 100, 3))
    assert Image.open(io.BytesIO(figures.image_png(colour))).size == (100, 200)


def test_the_difference_is_amplified_around_grey():
    before = np.full((1, 8, 8, 3), 0.5, np.float32)
    after = before + np.float32(0.04)
    sources = Page(figures.image_grid(before, after, amplify=4)).sources
    panels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))) for source in sources]
    assert [int(panel[0, 0, 0]) for panel in panels] == [128, 138, 168]


@pytest.mark.parametrize(("largest", "factor"), [(0.0, 1), (0.004, 64), (8 / 255, 8), (16 / 255, 4), (0.9, 1)])
def test_amplification_is_the_largest_that_does_not_clip(largest, factor):
    assert figures.amplification(np.full((2, 4, 4, 1), -largest)) == factor


def test_whole_numbers_are_binned_evenly():
    edges = figures.bin_edges(np.array([0.0, 137.0]))
    assert set(np.diff(edges)) == {3.0} and edges[0] == -0.5 and edges[-1] > 137
    assert len(figures.bin_edges(np.array([2.0]))) == 2
    assert len(figures.bin_edges(np.array([0.5, 0.5]))) == figures.BINS + 1


def test_changes_match_their_definition(images, monkeypatch):
    monkeypatch.setattr("jaxpurify.evaluate.report.CHUNK", 7 * 8 * 8)
    after = np.random.default_rng(2).integers(0, 256, images.shape, dtype=np.uint8)
    l2, linf = changes(images, after)
    difference = (after / 255.0 - images / 255.0).reshape(30, -1)
    np.testing.assert_allclose(l2, np.linalg.norm(difference, axis=1), rtol=1e-12)
    np.testing.assert_allclose(linf / 255, np.abs(difference).max(axis=1), rtol=1e-12)


def test_bad_input_is_named(tmp_path, images):
    path = tmp_path / "report.html"
    good = dataset(images)
    for arguments, message in (
        ((good, images[:3]), r"uint8 \(3, 8, 8, 1\); expected uint8 \(30, 8, 8, 1\)"),
        ((good, images / 255.0), "float64"),
        ((dataset(images[:0]), images[:0]), "has no images"),
    ):
        with pytest.raises(ValueError, match=message):
            purify_report(path, *arguments, purifier="p()")
    with pytest.raises(ValueError, match="2 names for 30 images"):
        purify_report(path, good, images, purifier="p()", names=("a", "b"))
    with pytest.raises(ValueError, match=r"energies_after has shape \(2,\)"):
        purify_report(path, good, images, purifier="p()", energies_after=[1.0, 2.0])
    with pytest.raises(ValueError, match="1 captions for 30"):
        figures.image_grid(images, images, ["a"])
    with pytest.raises(ValueError, match="amplify=0"):
        figures.image_grid(images, images, amplify=0)
    with pytest.raises(ValueError, match="expected \\[N, H, W, 1 or 3\\]"):
        figures.image_grid(images[..., 0], images[..., 0])
    with pytest.raises(ValueError, match="no finite values"):
        figures.histogram({"a": [np.nan]}, label="energy")
    with pytest.raises(ValueError, match="no rows"):
        demo_report(path, [], title="t")
    assert not path.exists()
