"""Folders of images: what is read, in which order, what is refused, and that writing is lossless."""

import os

import numpy as np
from PIL import Image
import pytest

from jaxpurify.data import folder as folder_module
from jaxpurify.data import load_source, save_dataset
from jaxpurify.data.sources import check_save

RANDOM = np.random.default_rng(0)


def save(path, *, mode="RGB", size=(6, 4), **options):
    """One image of random pixels; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "RGBA": 4, "LA": 2, "CMYK": 4}.get(mode, 1)
    pixels = RANDOM.integers(0, 256, (size[1], size[0], channels), np.uint8)
    if mode in ("P", "1"):
        image = Image.fromarray(pixels[..., 0]).convert(mode)
    else:
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode)
    image.save(path, **options)
    return pixels


@pytest.fixture
def photographs(tmp_path):
    """Two classes; files in no order, one of them in a folder below."""
    root = tmp_path / "photographs"
    pixels = {name: save(root / name) for name in ("dog/b.png", "cat/z.png", "cat/a.png", "dog/more/c.png")}
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    (root / "cat" / ".b.png").write_bytes(b"not read")
    return root, pixels


def test_files_are_read_sorted_with_their_class(photographs):
    root, pixels = photographs
    dataset = load_source(f"folder:{root}")
    assert dataset.names == ("cat/a.png", "cat/z.png", "dog/b.png", "dog/more/c.png")
    assert dataset.classes == ("cat", "dog")
    np.testing.assert_array_equal(dataset.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(dataset.images, np.stack([pixels[name] for name in dataset.names]))
    part = load_source(f"folder:{root}[1:3]")
    assert part.names == dataset.names[1:3] and part.classes == dataset.classes
    np.testing.assert_array_equal(part.images, dataset.images[1:3])


def test_a_class_without_images_cannot_be_kept_in_a_folder(photographs, tmp_path):
    part = load_source(f"folder:{photographs[0]}[2:]")
    for refuse in (check_save, save_dataset):
        with pytest.raises(ValueError, match=r"holds no image of class 'cat', and folders have no classes without im"):
            refuse(part, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_written_as_a_folder_and_read_back(photographs, tmp_path):
    dataset = load_source(f"folder:{photographs[0]}")
    dataset = dataset.replace_images(255 - dataset.images)
    again = load_source(save_dataset(dataset, tmp_path / "out" / "clean"))
    assert again.names == dataset.names and again.classes == dataset.classes
    np.testing.assert_array_equal(again.images, dataset.images)
    np.testing.assert_array_equal(again.labels, dataset.labels)
    assert os.listdir(tmp_path / "out") == ["clean"]


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (("c/a.jpg", "c/b.JPEG"), ("c/a.png", "c/b.png")),
        (("c/a.jpg", "c/a.png", "c/b.png"), ("c/a.png", "c/a.png.png", "c/b.png")),
        (("c/a.jpg", "c/a.k.jpg", "c/a-b.jpg"), ("c/a.png", "c/a.k.png", "c/a-b.png")),
        (
            ("c/a.jpg", "c/a.png", "c/a.k.jpg"),
            ("c/000000-a.jpg.png", "c/000001-a.png.png", "c/000002-a.k.jpg.png"),
        ),
    ],
)
def test_every_image_keeps_its_position_and_stem(tmp_path, names, written):
    for name in (*names, "d/x.png"):
        save(tmp_path / "in" / name)
    dataset = load_source(f"folder:{tmp_path}/in")
    assert dataset.names == (*names, "d/x.png")
    again = load_source(save_dataset(dataset, tmp_path / "out"))
    assert again.names == (*written, "d/x.png")
    np.testing.assert_array_equal(again.images, dataset.images)


def test_an_image_with_another_label_moves_to_its_new_class(photographs, tmp_path):
    dataset = load_source(f"folder:{photographs[0]}")
    relabelled = type(dataset)(dataset.images, 1 - dataset.labels, dataset.classes, dataset.names, dataset.source)
    save_dataset(relabelled, tmp_path / "clean")
    assert sorted(os.listdir(tmp_path / "clean" / "dog")) == ["a.png", "z.png"]


def test_grey_images_stay_grey_and_become_colour_beside_colour(tmp_path):
    for name, mode in (("a/1.png", "L"), ("a/2.png", "1"), ("b/3.png", "LA"), ("b/4.png", "L")):
        save(tmp_path / "grey" / name, mode=mode)
    grey = load_source(f"folder:{tmp_path}/grey")
    assert grey.images.shape == (4, 4, 6, 1)
    np.testing.assert_array_equal(load_source(save_dataset(grey, tmp_path / "out")).images, grey.images)
    save(tmp_path / "grey" / "b" / "5.png")
    mixed = load_source(f"folder:{tmp_path}/grey")
    assert mixed.images.shape == (5, 4, 6, 3)
    np.testing.assert_array_equal(mixed.images[:4], np.repeat(grey.images, 3, axis=3))


@pytest.mark.parametrize(
    ("mode", "suffix", "options"),
    [("RGBA", "png", {}), ("P", "png", {"transparency": b"\0\1"}), ("CMYK", "jpg", {}), ("RGB", "webp", {})],
)
def test_other_colour_images_become_rgb(tmp_path, mode, suffix, options):
    for name in ("a/1", "b/2"):
        pixels = save(tmp_path / f"{name}.{suffix}", mode=mode, **options)
    dataset = load_source(f"folder:{tmp_path}")
    assert dataset.images.shape == (2, 4, 6, 3)
    if mode == "RGBA":
        np.testing.assert_array_equal(dataset.images[1], pixels[..., :3])


def test_sixteen_bit_grey_is_rounded_to_eight(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.array([[0, 128, 129, 257 * 7, 65535]], np.uint16)).save(tmp_path / name / "x.png")
    np.testing.assert_array_equal(load_source(f"folder:{tmp_path}").images[0, 0, :, 0], [0, 0, 1, 7, 255])


def test_sizes_that_differ_need_a_size(tmp_path):
    save(tmp_path / "a" / "1.png", size=(6, 4))
    save(tmp_path / "b" / "2.png", size=(5, 9))
    with pytest.raises(ValueError, match=r"a/1.png is 6x4 and b/2.png is 5x9; give a size"):
        load_source(f"folder:{tmp_path}")
    assert load_source(f"folder:{tmp_path}", size=8).images.shape == (2, 8, 8, 3)


def test_bad_folders_are_named_in_one_line(tmp_path):
    def refuses(message):
        with pytest.raises(ValueError, match=message) as caught:
            load_source(f"folder:{tmp_path}/x")
        assert "\n" not in str(caught.value)

    refuses("x is not a folder")
    (tmp_path / "x").mkdir()
    refuses("x has no class folders")
    (tmp_path / "x" / "ape").mkdir()
    refuses("x/ape holds no images")
    save(tmp_path / "x" / "ape" / "1.png")
    refuses("x has only one class, 'ape'")
    (tmp_path / "x" / "bee").mkdir()
    refuses("x/bee holds no images")
    save(tmp_path / "x" / "bee" / "2.png")
    save(tmp_path / "x" / "stray.png")
    refuses("stray.png lies outside of a class folder")
    (tmp_path / "x" / "stray.png").unlink()
    (tmp_path / "x" / "bee" / "film.gif").write_bytes(b"GIF89a")
    refuses("film.gif is an image of a kind that is not read")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("damage", ["empty", "text", "half", "flipped", "header"])
def test_damaged_files_are_named(tmp_path, suffix, damage):
    save(tmp_path / "a" / f"good.{suffix}", size=(40, 40))
    save(tmp_path / "b" / f"bad.{suffix}", size=(40, 40))
    bad = tmp_path / "b" / f"bad.{suffix}"
    whole = bad.read_bytes()
    middle = len(whole) // 2
    bad.write_bytes(
        {
            "empty": b"",
            "text": b"<html>not found</html>",
            "half": whole[:middle],
            "flipped": whole[:30] + bytes(255 - byte for byte in whole[30:60]) + whole[60:middle],
            "header": whole[:20],
        }[damage]
    )
    with pytest.raises(ValueError, match=rf"b/bad.{suffix} is not a readable image") as caught:
        load_source(f"folder:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_thirty_two_bit_images_are_refused(tmp_path):
    save(tmp_path / "a" / "1.png")
    (tmp_path / "b").mkdir()
    header = b"P6\n2 2\n255\n"
    (tmp_path / "b" / "2.ppm").write_bytes(header + bytes(12))
    assert load_source(f"folder:{tmp_path}[1:]").images.shape == (1, 2, 2, 3)
    (tmp_path / "b" / "2.ppm").write_bytes(b"Pf\n2 2\n-1.0\n" + bytes(16))
    with pytest.raises(ValueError, match=r"b/2.ppm has pixels of type F"):
        load_source(f"folder:{tmp_path}")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_nothing_behind(photographs, tmp_path, monkeypatch, error):
    dataset = load_source(f"folder:{photographs[0]}")
    save_dataset(dataset, tmp_path / "old")
    before = load_source(f"folder:{tmp_path}/old").images
    encode, calls = folder_module.encode, []

    def fails_at_the_third(image):
        calls.append(image)
        if len(calls) == 3:
            raise error
        return encode(image)

    monkeypatch.setattr(folder_module, "encode", fails_at_the_third)
    with pytest.raises(type(error)):
        save_dataset(dataset, tmp_path / "new" / "clean")
    calls.clear()
    with pytest.raises(type(error)):
        save_dataset(dataset, tmp_path / "old", force=True)
    assert sorted(os.listdir(tmp_path)) == ["old", "photographs"]
    np.testing.assert_array_equal(load_source(f"folder:{tmp_path}/old").images, before)


def test_a_rename_that_fails_puts_the_old_folder_back(photographs, tmp_path, monkeypatch):
    dataset = load_source(f"folder:{photographs[0]}")
    save_dataset(dataset, tmp_path / "old")
    rename = os.rename

    def fails_for_the_new_one(source, destination):
        if str(source).endswith(".partial"):
            raise OSError(5, "Input/output error")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fails_for_the_new_one)
    with pytest.raises(OSError, match="Input/output error"):
        save_dataset(dataset, tmp_path / "old", force=True)
    assert sorted(os.listdir(tmp_path)) == ["old", "photographs"]
    assert len(load_source(f"folder:{tmp_path}/old")) == len(dataset)


def test_only_folders_that_were_written_here_are_replaced(photographs, tmp_path):
    root = photographs[0]
    dataset = load_source(f"folder:{root}")
    precious = tmp_path / "precious"
    save(precious / "a" / "1.png")
    with pytest.raises(ValueError, match="precious is a folder that was not written by jaxpurify"):
        save_dataset(dataset, precious, force=True)
    for destination in (root, root / "cat" / "new", tmp_path):
        with pytest.raises(ValueError, match="overlaps its source"):
            save_dataset(dataset, destination, force=True)
    save_dataset(dataset, tmp_path / "clean")
    with pytest.raises(ValueError, match="exists already"):
        save_dataset(dataset, tmp_path / "clean")
    save_dataset(dataset[1:3], tmp_path / "clean", force=True)
    assert sorted(os.listdir(tmp_path / "clean")) == [".jaxpurify", "cat", "dog"]
    assert os.listdir(tmp_path / "clean" / "cat") == ["z.png"]
    assert (precious / "a" / "1.png").exists()
