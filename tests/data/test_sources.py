"""Source strings, the kinds behind them, and saving a data set as what it was read from."""

import os
from pathlib import Path

import numpy as np
import pytest

from jaxpurify.data import Dataset, check_save, load_source, save_dataset
from jaxpurify.data.sources import parse_source


def test_digits_are_the_shipped_ones_in_their_order():
    dataset = load_source("digits")
    assert dataset.images.shape == (1797, 8, 8, 1) and dataset.images.dtype == np.uint8
    assert (dataset.images.min(), dataset.images.max()) == (0, 255)
    assert dataset.classes == tuple("0123456789")
    np.testing.assert_array_equal(dataset.labels[:10], range(10))
    # the first row of the first digit is 0 0 5 13 9 1 0 0 of 16
    np.testing.assert_array_equal(dataset.images[0, 0, :, 0], [0, 0, 80, 207, 143, 16, 0, 0])


@pytest.mark.parametrize("text", [":500", "500:", "-100:", "10:20", ":", "1700:9999", " 3 : +5 "])
def test_slices_mean_what_they_mean_in_python(text):
    start, stop = (int(bound) if bound.strip() else None for bound in text.split(":"))
    whole, part = load_source("digits"), load_source(f"digits[{text}]")
    np.testing.assert_array_equal(part.images, whole.images[start:stop])
    np.testing.assert_array_equal(part.labels, whole.labels[start:stop])
    assert part.source == f"digits[{text}]" and part.classes == whole.classes


def test_sources_are_parsed():
    assert parse_source("npz:a[1].npz[2:]") == ("npz", "a[1].npz", slice(2, None))
    assert parse_source("folder:/data/a[b]") == ("folder", "/data/a[b]", slice(None))
    assert parse_source("tfds:cifar10:3.0.2/train[:-5]") == ("tfds", "cifar10:3.0.2/train", slice(None, -5))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cifar10", "source 'cifar10' is unknown; known are digits, tfds:…, folder:…, npz:…"),
        ("", "source '' is unknown"),
        ("http://x", "source 'http://x' is unknown"),
        ("digits[::2]", "without a step"),
        ("digits[0:4:1]", "without a step"),
        ("digits[a:b]", "must be .a:b. with integers"),
        ("digits[3]", "is unknown"),
        ("digits:mnist", "digits takes a split or a slice"),
        ("digits[5000:]", "selects no images"),
        ("npz:", "names nothing after npz:"),
        ("folder:[:5]", "names nothing after folder:"),
        ("npz:/nowhere/x.npz", "/nowhere/x.npz does not exist"),
        ("folder:/nowhere", "/nowhere is not a folder"),
    ],
)
def test_bad_sources_are_named_in_one_line(source, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_source(source)
    assert "\n" not in str(caught.value)


def test_sizes():
    assert load_source("digits[:3]", size=16).images.shape == (3, 16, 16, 1)
    assert load_source("digits[:3]", size=8).images.shape == (3, 8, 8, 1)
    for size in (0, -4, 5000):
        with pytest.raises(ValueError, match=f"size is {size}; it must be 1 … 4096"):
            load_source("digits", size=size)


@pytest.mark.parametrize("source", ["digits[:5]", ""])
def test_digits_and_own_arrays_are_saved_as_npz(tmp_path, source):
    dataset = load_source("digits[:5]")
    dataset = Dataset(dataset.images, dataset.labels, dataset.classes, source=source)
    again = load_source(save_dataset(dataset, tmp_path / "new" / "clean.npz"))
    np.testing.assert_array_equal(again.images, dataset.images)
    np.testing.assert_array_equal(again.labels, dataset.labels)
    assert again.classes == dataset.classes
    assert os.listdir(tmp_path / "new") == ["clean.npz"]


def test_nothing_is_overwritten_without_being_told_to(tmp_path):
    dataset = load_source("digits[:5]")
    destination = tmp_path / "x.npz"
    save_dataset(dataset, destination)
    before = destination.read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        save_dataset(dataset[:2], destination)
    assert destination.read_bytes() == before
    save_dataset(dataset[:2], destination, force=True)
    assert len(load_source(f"npz:{destination}")) == 2


def test_a_folder_is_not_named_like_an_archive(tmp_path, cifar10):
    dataset = load_source(f"{cifar10}/train[:4]")
    with pytest.raises(ValueError, match=r"x.npz is named like one file; tfds images are written to a folder$"):
        save_dataset(dataset, tmp_path / "x.npz")
    assert not list(tmp_path.iterdir())


def test_the_source_is_never_overwritten(tmp_path):
    save_dataset(load_source("digits[:5]"), tmp_path / "x.npz")
    dataset = load_source(f"npz:{tmp_path}/x.npz")
    for destination in (tmp_path / "x.npz", tmp_path):
        with pytest.raises(ValueError, match="overlaps its source"):
            save_dataset(dataset, destination, force=True)


def test_a_destination_can_be_checked_before_long_work(tmp_path):
    dataset = load_source("digits[:5]")
    check_save(dataset, tmp_path / "new.npz")
    with pytest.raises(ValueError, match="is a folder; digits images are written to one"):
        check_save(dataset, tmp_path, force=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file is not a folder"):
        check_save(dataset, tmp_path / "file" / "x.npz")
    assert os.listdir(tmp_path) == ["file"]


def test_cifar10_is_read_through_tfds(cifar10):
    dataset = load_source(f"{cifar10}/train[:1000]")
    assert dataset.images.shape == (1000, 32, 32, 3)
    assert dataset.classes[6] == "frog" and len(dataset.classes) == 10
    assert np.bincount(dataset.labels, minlength=10).min() > 70
    assert 100 < dataset.images.mean() < 140
    part = load_source(f"{cifar10}/train[990:1000]")
    np.testing.assert_array_equal(part.images, dataset.images[990:])
    np.testing.assert_array_equal(part.labels, dataset.labels[990:])
    assert load_source(f"{cifar10}/test[-3:]", size=16).images.shape == (3, 16, 16, 3)


def test_cifar10_is_written_as_tfds_with_its_other_features(cifar10, tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    dataset = load_source(f"{cifar10}/train[20:40]")
    dataset = dataset.replace_images(255 - dataset.images)
    # TFDS reads the environment only once, when it is imported.
    stored = tfds.data_source("cifar10", split="train[20:40]", data_dir=os.environ["TFDS_DATA_DIR"])
    identifiers = [example["id"] for example in stored]
    source = save_dataset(dataset, tmp_path / "clean")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "clean"))
    again = load_source(source)
    np.testing.assert_array_equal(again.images, dataset.images)
    np.testing.assert_array_equal(again.labels, dataset.labels)
    assert again.classes == dataset.classes
    examples = tfds.data_source("cifar10", split="train", data_dir=tmp_path / "clean")
    assert [example["id"] for example in examples] == identifiers
    np.testing.assert_array_equal(examples[7]["image"], dataset.images[7])
    with pytest.raises(ValueError, match="cifar10 has no split 'test'; it has train"):
        load_source("tfds:cifar10/test")


def test_other_sizes_and_numbers_of_examples_are_written_as_tfds(cifar10, tmp_path, monkeypatch):
    dataset = load_source(f"{cifar10}/test[:9]", size=8).select([4, 2, 7])
    source = save_dataset(dataset, tmp_path / "clean")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "clean"))
    np.testing.assert_array_equal(load_source(source).images, dataset.images)
    np.testing.assert_array_equal(load_source(source).labels, dataset.labels)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:cifar10", "does not name a split; write tfds:NAME/SPLIT"),
        ("tfds:cifar10/validation", "no split 'validation'; it has test, train"),
        ("tfds:cifar100/train", "cifar100 is not prepared in .*download_and_prepare"),
        ("tfds:no_such_set/train", "cannot be opened .*TFDS_DATA_DIR"),
        ("tfds:cifar10/train[50000:]", "selects none of the 50000 examples"),
    ],
)
def test_bad_tfds_sources(cifar10, source, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_source(source)
    assert "\n" not in str(caught.value)


def test_a_tfds_directory_that_is_absent(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/nowhere")
    with pytest.raises(ValueError, match="TFDS_DATA_DIR is '/nowhere', which is not a folder"):
        load_source("tfds:cifar10/train")


class FullWriter:
    """Fails as ArrayRecord's writer does on a full disk: when it is closed."""

    def __init__(self, path, options):
        Path(path).write_bytes(b"half")

    def write(self, record):
        assert record

    def close(self):
        raise RuntimeError("write() failed: No space left on device")


def test_a_failure_while_writing_tfds_leaves_nothing_behind(cifar10, tmp_path, monkeypatch):
    dataset = load_source(f"{cifar10}/test[:5]")
    with monkeypatch.context() as patched:
        patched.setattr("jaxpurify.data.tfds.ArrayRecordWriter", FullWriter)
        with pytest.raises(OSError, match=r"cannot be written .*No space left"):
            save_dataset(dataset, tmp_path / "clean")
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr("jaxpurify.data.tfds.encode", _full)
    with pytest.raises(OSError, match="No space left"):
        save_dataset(dataset, tmp_path / "clean")
    assert os.listdir(tmp_path) == []


def test_a_tfds_directory_never_replaces_itself(cifar10, tmp_path, monkeypatch):
    dataset = load_source(f"{cifar10}/test[:5]")
    with pytest.raises(ValueError, match="overlaps its source"):
        save_dataset(dataset, Path(os.environ["TFDS_DATA_DIR"]), force=True)
    save_dataset(dataset, tmp_path / "clean")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "clean"))
    for function in (save_dataset, check_save):
        with pytest.raises(ValueError, match="overlaps its source"):
            function(load_source("tfds:cifar10/test"), tmp_path / "clean", force=True)


def _full(*arguments):
    raise OSError(28, "No space left on device")
