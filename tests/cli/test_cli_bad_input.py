"""Bad input: status 2, one line that names what is wrong, nothing written, no work begun."""

import numpy as np
import pytest

from jaxpurify.cli.main import main
from tests.cli.conftest import png

JPEG = ("--purifier", "jpeg(quality=50)")
GREY = np.full((12, 12, 3), 90, np.uint8)


@pytest.fixture
def purify_refused(refused, everything):
    """Runs `purify SOURCE` with more options; what was there before is all that is there after."""

    def run(source, *options):
        before = everything()
        message = refused("purify", source, "--out", "clean", *options)
        assert everything() == before
        assert message.startswith("jaxpurify purify: ")
        return message

    return run


def test_a_missing_folder(here, purify_refused):
    assert "absent is not a folder" in purify_refused("folder:absent", *JPEG)


def test_an_empty_folder(here, purify_refused):
    (here / "empty").mkdir()
    assert "empty has no class folders" in purify_refused("folder:empty", *JPEG)


def test_an_empty_class_folder(here, photographs, purify_refused):
    (here / "photos" / "eel").mkdir()
    assert "eel holds no images" in purify_refused(photographs, *JPEG)


def test_one_class_only_where_two_are_needed(here, refused, purify_refused):
    (here / "photos" / "cat").mkdir(parents=True)
    (here / "photos" / "cat" / "1.png").write_bytes(png(GREY))
    assert "only one class, 'cat'" in purify_refused("folder:photos", *JPEG)
    np.savez(here / "one.npz", images=np.zeros((60, 8, 8, 1), np.uint8), labels=np.zeros(60, int))
    assert "one class only" in refused("train", "npz:one.npz", "--out", "model.safetensors")
    assert "one class only" in refused("craft", "badnets(count=1)", "npz:one.npz", "--out", "p.npz", "--target", 0)


def test_images_of_mixed_sizes(here, photographs, purify_refused):
    (here / "photos" / "dog" / "large.png").write_bytes(png(np.zeros((13, 12, 3), np.uint8)))
    assert "dog/large.png" in purify_refused(photographs, *JPEG)
    assert main(["purify", photographs, "--out", "clean", *JPEG, "--size", "8"]) == 0


def test_a_truncated_png(here, photographs, purify_refused):
    whole = png(np.random.default_rng(2).integers(0, 256, (12, 12, 3), dtype=np.uint8))
    (here / "photos" / "dog" / "half.png").write_bytes(whole[: len(whole) // 2])
    assert "dog/half.png" in purify_refused(photographs, *JPEG)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"images": GREY[None]}, "no array 'labels'"),
        ({"images": GREY[None], "labels": np.array([-1])}, "labels span -1"),
        ({"images": GREY[None], "labels": np.array([2]), "classes": np.array(["a", "b"])}, "label 2 at position 0"),
        ({"images": GREY[None] / 50.0, "labels": np.array([0])}, "must lie in [0, 1]"),
        ({"images": GREY[None] / np.float32(0.001), "labels": np.array([0])}, "must lie in [0, 1]"),
    ],
)
def test_an_archive_that_is_not_labelled_images(here, purify_refused, arrays, complaint):
    np.savez(here / "data.npz", **arrays)
    assert complaint in purify_refused("npz:data.npz", *JPEG)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("blur", "unknown purifier 'blur'; known: identity, jpeg, langevin"),
        ("jpeg(quality=0)", "quality=0"),
        ("jpeg(size=2)", "size"),
        ("jpeg(quality=open('x'))", "not a literal"),
        ("langevin(steps=-1, weights='WEIGHTS')", "steps=-1"),
        ("langevin(steps=10, weights='absent.safetensors')", "absent.safetensors"),
        ("langevin(steps=10)|jpeg", "no bundled energy model for 12x12x3"),
        ("jpeg||jpeg", "not of the form"),
    ],
)
def test_a_purifier_that_cannot_be_made(photographs, purify_refused, energy_weights, spec, complaint):
    assert complaint in purify_refused(photographs, "--purifier", spec.replace("WEIGHTS", str(energy_weights)))


def test_a_network_for_images_of_another_shape(photographs, purify_refused, energy_weights):
    message = purify_refused(photographs, "--purifier", f"langevin(steps=1, weights='{energy_weights}')")
    assert "(12, 12, 3)" in message and "(8, 8, 1)" in message


def test_an_output_that_exists(here, photographs, purify_refused):
    (here / "clean.html").write_text("mine")
    assert "clean.html exists already" in purify_refused(photographs, *JPEG)
    (here / "clean").mkdir()
    (here / "clean" / "thesis.txt").write_text("mine")
    assert "clean exists already" in purify_refused(photographs, *JPEG)
    assert "not written by jaxpurify" in purify_refused(photographs, *JPEG, "--force")


def test_an_output_inside_of_its_source(photographs, refused, everything):
    before = everything()
    for place in ("photos", "photos/clean"):
        assert "overlaps" in refused("purify", photographs, "--out", place, *JPEG, "--force")
    assert "overlaps" in refused("purify", photographs, "--out", "clean", "--report", "photos/r.html", *JPEG)
    assert everything() == before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--seed", "-1"), "seed -1"),
        (("--seed", str(2**40)), "out of range"),
        (("--batch-size", "0"), "batch-size 0"),
        (("--size", "0"), "size"),
        (("--report", "clean"), "choose another place"),
    ],
)
def test_options_out_of_range(photographs, purify_refused, options, complaint):
    assert complaint in purify_refused(photographs, *JPEG, *options)


@pytest.mark.parametrize("source", ["digits[3]", "video:x", "digits:x", "npz:", "digits[5:5]", "tfds:absent"])
def test_a_source_that_is_none(here, purify_refused, source):
    assert source.split(":")[0].split("[")[0] in purify_refused(source, *JPEG)


def test_unknown_commands_and_options(here, refused, capfd):
    assert "unknown command 'clean'; known: demo, purify" in refused("clean")
    assert main(["purify", "digits", "--colour", "red"]) == 2
    assert "--colour" in capfd.readouterr().err
    assert main([]) == 2
    assert "usage: jaxpurify COMMAND" in capfd.readouterr().out
