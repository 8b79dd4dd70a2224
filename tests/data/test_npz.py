"""The .npz kind: what is accepted, rounded and refused."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from jaxpurify.data import load_source, save_dataset

IMAGES = np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3)
LABELS = np.array([0, 2, 1, 0])


def write(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_arrays_come_back_as_they_are(tmp_path):
    dataset = load_source(write(tmp_path / "x.npz", images=IMAGES, labels=LABELS) + "[1:]")
    np.testing.assert_array_equal(dataset.images, IMAGES[1:])
    np.testing.assert_array_equal(dataset.labels, LABELS[1:])
    assert dataset.classes == ("0", "1", "2")
    named = write(tmp_path / "y.npz", images=IMAGES, labels=LABELS, classes=np.array(["ape", "bee", "cat"]))
    assert load_source(named).classes == ("ape", "bee", "cat")


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_in_the_unit_interval_are_rounded(tmp_path, kind):
    floats = (IMAGES / 255).astype(kind)
    dataset = load_source(write(tmp_path / "x.npz", images=floats, labels=LABELS))
    np.testing.assert_array_equal(dataset.images, IMAGES)


class Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": LABELS}, "has no array 'images'; it holds labels"),
        ({"images": IMAGES}, "has no array 'labels'; it holds images"),
        ({"x": LABELS}, "has no array 'images'; it holds x"),
        ({"images": IMAGES / 20, "labels": LABELS}, "float images span 0 … 2.35"),
        ({"images": IMAGES * 1.0, "labels": LABELS}, "float images span 0 … 47; they must lie in .0, 1."),
        ({"images": IMAGES - 1.5, "labels": LABELS}, "float images span -1.5 … 45.5"),
        ({"images": np.full((4, 2, 2, 3), np.nan), "labels": LABELS}, "48 values that are NaN or infinite"),
        ({"images": np.full((4, 2, 2, 3), np.inf), "labels": LABELS}, "48 values that are NaN or infinite"),
        ({"images": IMAGES.astype(np.int64), "labels": LABELS}, "images are int64"),
        ({"images": IMAGES[:3], "labels": LABELS}, "3 images and 4 labels"),
        ({"images": np.uint8(3), "labels": LABELS}, "images are a single number; an array .N, H, W, C. is needed"),
        ({"images": IMAGES, "labels": LABELS + 2**40}, "without names of classes; at most 99999 then"),
        ({"images": IMAGES[..., 0], "labels": LABELS}, r"shape \(4, 2, 2\)"),
        ({"images": IMAGES, "labels": LABELS * 1.0}, "labels are float64"),
        ({"images": IMAGES, "labels": LABELS[:, None]}, r"labels are int64 of shape \(4, 1\)"),
        ({"images": IMAGES, "labels": LABELS - 1}, "labels span -1 … 1"),
        ({"images": IMAGES, "labels": LABELS, "classes": np.array(["a"])}, "label 2 at position 1 is out of range"),
        ({"images": np.array([Evil()] * 4), "labels": LABELS}, "not a readable .npz file"),
        ({"images": IMAGES, "labels": np.array([None] * 4)}, "not a readable .npz file"),
    ],
)
def test_bad_arrays_are_named_in_one_line(tmp_path, monkeypatch, arrays, message):
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        load_source(source)
    assert "\n" not in str(caught.value) and "x.npz" in str(caught.value)
    assert os.listdir(tmp_path) == ["x.npz"]


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken", pickle.dumps({"a": 1})])
def test_files_that_are_not_npz(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.npz is not a readable .npz file") as caught:
        load_source(f"npz:{tmp_path}/x.npz")
    assert "\n" not in str(caught.value)


def test_members_of_the_archive_that_are_damaged_or_no_arrays(tmp_path):
    def archive(**members):
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
            for name, content in members.items():
                file.writestr(name.replace("_", "."), content)

    def npy(header):
        return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header

    whole = "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 4, 4, 1), }\n"
    for header in (whole.replace("}", ""), whole.replace("(1,", "(9999999999999,")):
        archive(images_npy=npy(header.encode()) + bytes(16), labels_npy=npy(whole.encode()))
        with pytest.raises(ValueError, match=r"x.npz is not a readable .npz file \(.+\)$"):
            load_source(f"npz:{tmp_path}/x.npz")
    archive(images_npy=npy(whole.encode()) + bytes(16), labels=b"no array")
    with pytest.raises(ValueError, match=r"x.npz: labels is no array in NumPy's format$"):
        load_source(f"npz:{tmp_path}/x.npz")


def test_truncated_and_single_array_files(tmp_path):
    write(tmp_path / "x.npz", images=IMAGES, labels=LABELS)
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[: len(whole) // 2])
    np.save(tmp_path / "y.npy", IMAGES)
    for name in ("x.npz", "y.npy"):
        with pytest.raises(ValueError, match="not a readable"):
            load_source(f"npz:{tmp_path / name}")
    with pytest.raises(ValueError, match="not a readable"):
        load_source(f"npz:{tmp_path}")


def test_a_full_disk_leaves_nothing_behind_and_the_old_file_whole(tmp_path, monkeypatch):
    dataset = load_source("digits[:5]")
    save_dataset(dataset, tmp_path / "x.npz")
    before = (tmp_path / "x.npz").read_bytes()

    def fill_disk(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fill_disk)
    for destination, force in ((tmp_path / "x.npz", True), (tmp_path / "a" / "b" / "y.npz", False)):
        with pytest.raises(OSError, match="No space left"):
            save_dataset(dataset, destination, force=force)
    assert os.listdir(tmp_path) == ["x.npz"]
    assert (tmp_path / "x.npz").read_bytes() == before
