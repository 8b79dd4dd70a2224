"""CINIC-10 and Tiny-ImageNet in small: the layouts in which they are published."""

import numpy as np
from PIL import Image
import pytest

from jaxpurify.data import load_source, save_dataset

RANDOM = np.random.default_rng(0)


def save(path, *, mode="RGB", size=32, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RANDOM.integers(0, 256, (size, size) + ((3,) if mode == "RGB" else ()), np.uint8)
    Image.fromarray(pixels, mode).save(path, **options)
    return pixels


@pytest.fixture
def cinic(tmp_path):
    """Two classes with an image of CIFAR-10 and one (of the first class two) of ImageNet in each split."""
    root, pixels = tmp_path / "cinic", {}
    for split in ("train", "valid", "test"):
        for label, others in (("airplane", ("n02690373_7.png", "n02691156_10.png")), ("dog", ("n02085272_1.png",))):
            for name in (f"cifar10-{split}-12.png", *others):
                pixels[f"{split}/{label}/{name}"] = save(root / split / label / name)
    return root, pixels


def test_cinic10_is_read_with_its_parts(cinic):
    root, pixels = cinic
    train = load_source(f"cinic10:{root}/train")
    assert train.classes == ("airplane", "dog") and train.labels.tolist() == [0, 0, 0, 1, 1]
    assert train.images.shape == (5, 32, 32, 3)
    for name, image in zip(train.names, train.images, strict=True):
        np.testing.assert_array_equal(image, pixels[f"train/{name}"])
    imagenet, cifar = load_source(f"cinic10:{root}/train/imagenet"), load_source(f"cinic10:{root}/train/cifar10")
    assert imagenet.names == ("airplane/n02690373_7.png", "airplane/n02691156_10.png", "dog/n02085272_1.png")
    assert cifar.names == ("airplane/cifar10-train-12.png", "dog/cifar10-train-12.png")
    assert load_source(f"cinic10:{root}/test/imagenet[1:]").names == imagenet.names[1:]
    assert load_source(f"cinic10:{root}/valid", size=8).images.shape == (5, 8, 8, 3)


def test_cinic10_is_written_as_a_folder(cinic, tmp_path):
    root, _ = cinic
    train = load_source(f"cinic10:{root}/train/imagenet")
    written = save_dataset(train, tmp_path / "clean")
    again = load_source(written)
    assert written == f"folder:{tmp_path / 'clean'}" and again.names == train.names
    np.testing.assert_array_equal(again.images, train.images)
    with pytest.raises(ValueError, match="overlaps its source"):
        save_dataset(train, root / "train" / "clean")


@pytest.fixture
def tiny(tmp_path):
    """Three classes, two training and one or two validation images each; one of the training images is grey."""
    root, pixels = tmp_path / "tiny-imagenet-200", {}
    wnids = ("n03444034", "n02124075", "n04067472")
    options = {"size": 64, "format": "JPEG", "quality": 95}
    for wnid in wnids:
        for number in range(2):
            grey = wnid == "n02124075" and number == 0
            save(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", mode="L" if grey else "RGB", **options)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("0\t0\t63\t63\n")
    lines = []
    for number, wnid in enumerate((*wnids, "n02124075")):
        name = f"val_{number}.JPEG"
        save(root / "val" / "images" / name, **options)
        pixels[name] = np.asarray(Image.open(root / "val" / "images" / name))
        lines.append(f"{name}\t{wnid}\t0\t0\t63\t63")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n\n")
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    return root, pixels


def test_tiny_imagenet_is_read(tiny):
    root, pixels = tiny
    train, val = load_source(f"tiny-imagenet:{root}/train"), load_source(f"tiny-imagenet:{root}/val")
    assert train.classes == val.classes == ("n02124075", "n03444034", "n04067472")
    assert train.images.shape == (6, 64, 64, 3) and train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.names[0] == "n02124075/n02124075_0.JPEG"
    assert (train.images[0] == train.images[0, ..., :1]).all()  # grey
    assert not (train.images[1] == train.images[1, ..., :1]).all()
    # Of two classes only the grey image: it has three channels all the same.
    assert load_source(f"tiny-imagenet:{root}/train[:1]").images.shape == (1, 64, 64, 3)
    assert val.names == ("n02124075/val_1.JPEG", "n02124075/val_3.JPEG", "n03444034/val_0.JPEG", "n04067472/val_2.JPEG")
    assert val.labels.tolist() == [0, 0, 1, 2]
    for name, image in zip(val.names, val.images, strict=True):
        np.testing.assert_array_equal(image, pixels[name.split("/")[1]])


def test_tiny_imagenet_without_its_list_of_classes(tiny):
    root, _ = tiny
    expected = load_source(f"tiny-imagenet:{root}/val")
    (root / "wnids.txt").unlink()
    assert load_source(f"tiny-imagenet:{root}/val").classes == expected.classes


def test_tiny_imagenet_is_written_as_a_folder_in_the_same_order(tiny, tmp_path):
    val = load_source(f"tiny-imagenet:{tiny[0]}/val")
    again = load_source(save_dataset(val, tmp_path / "clean"))
    assert again.classes == val.classes
    np.testing.assert_array_equal(again.labels, val.labels)
    np.testing.assert_array_equal(again.images, val.images)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cinic10:{cinic}", "names no split; write cinic10:PATH/SPLIT with a split of train, valid, test"),
        ("cinic10:{cinic}/train/dog", "names no split"),
        ("cinic10:/nowhere/train", "/nowhere/train is not a folder"),
        ("cinic10:{cinic}/train/cifar10[7:]", "selects none of its 2 images"),
        ("tiny-imagenet:{tiny}", "names no split; write tiny-imagenet:PATH/train or …/val"),
        ("tiny-imagenet:{tiny}/test", "names no split"),
        ("tiny-imagenet:/nowhere/train", "/nowhere/train is not a folder"),
        ("tiny-imagenet:{tiny}/val[9:]", "selects none of its 4 images"),
    ],
)
def test_bad_sources_are_named_in_one_line(source, message, cinic, tiny):
    with pytest.raises(ValueError, match=message) as caught:
        load_source(source.format(cinic=cinic[0], tiny=tiny[0]))
    assert "\n" not in str(caught.value)


def test_damaged_tiny_imagenet_is_named(tiny):
    root, _ = tiny
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn99999999\t0\n")
    with pytest.raises(ValueError, match=r"val_annotations.txt line 1 is not a file name and one of the 3 classes"):
        load_source(f"tiny-imagenet:{root}/val")
    annotations.write_text("absent.JPEG\tn02124075\t0\n")
    with pytest.raises(ValueError, match=r"absent.JPEG cannot be read"):
        load_source(f"tiny-imagenet:{root}/val")
    annotations.unlink()
    with pytest.raises(ValueError, match=r"val_annotations.txt is absent"):
        load_source(f"tiny-imagenet:{root}/val")
    for file in (root / "train" / "n02124075" / "images").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"n02124075/images holds no .JPEG files"):
        load_source(f"tiny-imagenet:{root}/train")
    (root / "wnids.txt").write_text("n02124075\n")
    with pytest.raises(ValueError, match=r"neither wnids.txt nor class folders"):
        load_source(f"tiny-imagenet:{root}/train")
