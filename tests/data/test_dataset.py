"""The data set record: what it refuses, and that positions are kept."""

import numpy as np
import pytest

from jaxpurify.data import Dataset


def make(count=6, **changes):
    arrays = {
        "images": np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3),
        "labels": np.arange(count, dtype=np.int32) % 3,
        "classes": ("a", "b", "c"),
        "names": tuple(f"{position}.png" for position in range(count)),
        "source": "npz:x",
    }
    return Dataset(**{**arrays, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((6, 2, 2, 3), np.float32)}, "images are float32"),
        ({"images": np.full((6, 2, 2, 3), np.nan)}, "images are float64"),
        ({"images": np.zeros((6, 2, 2, 4), np.uint8)}, r"shape \(6, 2, 2, 4\)"),
        ({"images": np.zeros((6, 2, 2), np.uint8)}, r"shape \(6, 2, 2\)"),
        ({"images": np.zeros((6, 0, 2, 3), np.uint8)}, r"shape \(6, 0, 2, 3\)"),
        ({"labels": np.zeros(5, np.int32)}, "6 images need one row of 6 labels"),
        ({"labels": np.zeros((6, 1), np.int32)}, r"labels have shape \(6, 1\)"),
        ({"labels": np.array([0, 1, 2, 3, 0, 0])}, "label 3 at position 3 is out of range"),
        ({"labels": np.array([0, 1, -1, 0, 0, 0])}, "labels span -1 … 1"),
        ({"labels": np.zeros(6)}, "labels are float64"),
        ({"labels": np.full(6, 2**40)}, "fit in int32"),
        ({"classes": ()}, "classes is empty"),
        ({"names": ("a.png",)}, "1 names for 6 images"),
    ],
)
def test_bad_values_are_named_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)


def test_labels_become_int32():
    assert make(labels=np.array([0, 1, 2, 0, 1, 2], np.int64)).labels.dtype == np.int32


def test_slices_and_selections_keep_rows_together():
    dataset = make()
    for part, rows in ((dataset[1:4], [1, 2, 3]), (dataset[-2:], [4, 5]), (dataset.select([5, 0]), [5, 0])):
        np.testing.assert_array_equal(part.images, dataset.images[rows])
        np.testing.assert_array_equal(part.labels, dataset.labels[rows])
        assert part.names == tuple(f"{row}.png" for row in rows)
        assert (part.classes, part.source) == (dataset.classes, dataset.source)
    assert dataset.select(dataset.labels == 1).names == ("1.png", "4.png")
    assert len(dataset.select([])) == len(dataset[6:]) == 0


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([6], "positions are 0 … 5"),
        ([-1], "positions are 0 … 5"),
        ([0.5], "one row of integers"),
        ([[0]], "one row of integers"),
        (np.array([True]), "one entry an image"),
    ],
)
def test_bad_selections(index, message):
    with pytest.raises(ValueError, match=message):
        make().select(index)


def test_one_example_is_not_a_dataset():
    with pytest.raises(ValueError, match=r"dataset\[3\] is not a slice"):
        make()[3]


def test_replaced_images_keep_everything_else():
    dataset = make()
    other = dataset.replace_images(np.zeros((6, 4, 4, 3), np.uint8))
    assert other.images.shape == (6, 4, 4, 3)
    assert other.names == dataset.names
    with pytest.raises(ValueError, match="5 images for 6 examples"):
        dataset.replace_images(dataset.images[:5])
    with pytest.raises(ValueError, match="images are float32"):
        dataset.replace_images(dataset.images.astype(np.float32))
