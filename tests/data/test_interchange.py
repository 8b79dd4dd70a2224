"""Files of other people: poison folders and set-ups of the benchmark, MetaPoison and Bullseye Polytope."""

import pickle
import pickletools

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from jaxpurify.data import (
    AdditiveTrigger,
    Dataset,
    PatchTrigger,
    Poison,
    ScatteredPatchTrigger,
    Targets,
    WarpTrigger,
    poison_dataset,
    to_float,
    to_uint8,
)
from jaxpurify.data.interchange import Setup, read_benchmark, read_setups, write_benchmark, write_setups
from jaxpurify.data.locate import exact_positions, level_limit, locate
from jaxpurify.data.poison_packages import read_bullseye, read_metapoison, write_bullseye, write_metapoison
from jaxpurify.data.restricted_pickle import load_pickle

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (40, 12, 12, 3)).astype(np.uint8)
LABELS = (np.arange(40) % 4).astype(np.int32)
TEST = RANDOM.integers(0, 256, (10, 12, 12, 3)).astype(np.uint8)
INDEX = np.array([9, 1, 5])
CHANGE = RANDOM.integers(-8, 9, (3, 12, 12, 3))
POISONS = np.clip(IMAGES[INDEX] + CHANGE, 0, 255).astype(np.uint8)
TARGETS = Targets(TEST[[7]], np.array([3]), np.array([7]))
POISON = Poison(POISONS, LABELS[INDEX], INDEX, 1, None, {}, TARGETS)


def white_patch(rows, columns):
    mask = np.zeros((12, 12, 1), np.float32)
    mask[rows, columns] = 1
    return PatchTrigger(np.broadcast_to(mask, (12, 12, 3)) * np.float32(0.6), mask)


def dump(path, content, protocol=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))


def write_folder(folder, *, poisons=POISONS, labels=(1, 1, 1), index=(9, 1, 5), target=None):
    pairs = [(Image.fromarray(each), label) for each, label in zip(poisons, labels, strict=True)]
    dump(folder / "poisons.pickle", pairs)
    dump(folder / "base_indices.pickle", index)
    dump(folder / "target.pickle", target or (Image.fromarray(TEST[7]), 3))
    return folder


def equal(first, second):
    for name in ("images", "labels", "index"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.target == second.target


def test_a_folder_comes_back_as_it_was(tmp_path):
    write_benchmark(tmp_path / "0", POISON)
    loaded = read_benchmark(tmp_path / "0", IMAGES, LABELS, test_images=TEST)
    equal(loaded, POISON)
    np.testing.assert_array_equal(loaded.targets.images, TARGETS.images)
    assert loaded.targets.index.tolist() == [7] and loaded.targets.labels.tolist() == [3]
    assert loaded.how["largest_change"] == 8 and not loaded.how["labels_changed"] and loaded.trigger is None
    train = Dataset(IMAGES, LABELS, tuple("abcd"))
    np.testing.assert_array_equal(poison_dataset(train, loaded).images[INDEX], POISONS)


def test_what_is_written_is_what_the_benchmark_reads(tmp_path):
    write_benchmark(tmp_path / "0", POISON, positions=np.array([30, 31, 39]))
    pairs = pickle.loads((tmp_path / "0" / "poisons.pickle").read_bytes())
    assert [label for _, label in pairs] == [1, 1, 1] and {type(label) for _, label in pairs} == {int}
    assert pairs[0][0].mode == "RGB" and isinstance(pairs[0][0], Image.Image)
    np.testing.assert_array_equal(np.asarray(pairs[2][0]), POISONS[2])
    assert pickle.loads((tmp_path / "0" / "base_indices.pickle").read_bytes()) == [30, 31, 39]
    picture, label = pickle.loads((tmp_path / "0" / "target.pickle").read_bytes())
    assert label == 3 and np.array_equal(np.asarray(picture), TEST[7])


def test_numpy_of_any_age_finds_its_names(tmp_path):
    patched = Poison(POISONS, LABELS[INDEX], INDEX, 1, white_patch(slice(2, 5), slice(3, 6)), {}, TARGETS)
    write_benchmark(tmp_path / "0", patched)
    write_setups(tmp_path / "setups.pickle", [Setup(3, 7, 1, INDEX)])
    write_metapoison(
        tmp_path / "package.pickle",
        POISON,
        Dataset(IMAGES, LABELS, tuple("abcd")),
        Dataset(TEST, LABELS[:10], tuple("abcd")),
    )
    written = [*(tmp_path / "0").glob("*.pickle"), tmp_path / "setups.pickle", tmp_path / "package.pickle"]
    names = set()
    for file in written:
        loaded = pickle.loads(file.read_bytes())  # NumPy 2 knows the old names as well
        assert loaded
        names |= {
            str(argument) for opcode, argument, _ in pickletools.genops(file.read_bytes()) if opcode.name == "GLOBAL"
        }
    assert {"numpy.core.multiarray _reconstruct", "numpy.core.multiarray scalar"} <= names
    assert not any("_core" in name for name in names)
    np.testing.assert_array_equal(pickle.loads((tmp_path / "setups.pickle").read_bytes())[0]["base indices"], INDEX)


def test_poisons_of_a_third_class_have_no_place_in_these_files(tmp_path):
    third = Poison(POISONS, LABELS[INDEX], INDEX, 2, None, {}, TARGETS)
    with pytest.raises(ValueError, match=r"^poisons of class 1 for the attacker's class 2; these files have one class"):
        write_benchmark(tmp_path / "0", third)
    covers = Poison(POISONS, LABELS[INDEX] + np.int32([0, 1, 1]), INDEX, 1, None, {}, TARGETS)
    with pytest.raises(ValueError, match=r"^poisons of class 1, 2 for the attacker's class 1; these files have one"):
        write_benchmark(tmp_path / "0", covers)
    assert not (tmp_path / "0").exists()


def test_pictures_without_colour(tmp_path):
    targets = Targets(TARGETS.images[..., :1], TARGETS.labels, TARGETS.index)
    gray = Poison(POISONS[..., :1], LABELS[INDEX], INDEX, 1, None, {}, targets)
    write_benchmark(tmp_path / "0", gray)
    loaded = read_benchmark(tmp_path / "0", IMAGES[..., :1], LABELS, epsilon=None)
    np.testing.assert_array_equal(loaded.images, gray.images)
    np.testing.assert_array_equal(loaded.targets.images, targets.images)


def test_a_patch_is_written_as_numbers_and_a_corner(tmp_path):
    trigger = white_patch(slice(6, 10), slice(2, 5))
    write_benchmark(tmp_path / "0", Poison(POISONS, LABELS[INDEX], INDEX, 1, trigger, {}, TARGETS))
    _, label, patch, corner = pickle.loads((tmp_path / "0" / "target.pickle").read_bytes())
    assert label == 3 and corner == [2, 6] and patch.shape == (3, 4, 3) and (patch == np.float32(0.6)).all()
    loaded = read_benchmark(tmp_path / "0", IMAGES, LABELS, test_images=TEST)
    np.testing.assert_array_equal(loaded.trigger.mask, trigger.mask)
    np.testing.assert_array_equal(loaded.trigger.pattern, trigger.pattern)
    patched = TEST[7].copy()
    patched[6:10, 2:5] = 153
    np.testing.assert_array_equal(loaded.targets.images[0], patched)
    assert loaded.targets.index.tolist() == [7] and loaded.how["patch_corner"] == [2, 6]


def test_a_trigger_that_is_no_patch_is_put_on_the_target(tmp_path):
    trigger = WarpTrigger(np.ones((12, 12, 2), np.float32))
    write_benchmark(tmp_path / "0", Poison(POISONS, LABELS[INDEX], INDEX, 1, trigger, {}, TARGETS))
    picture, _ = pickle.loads((tmp_path / "0" / "target.pickle").read_bytes())
    np.testing.assert_array_equal(np.asarray(picture)[:-1, :-1], TEST[7][1:, 1:])


def test_several_sources_are_kept_beside_the_first(tmp_path):
    many = Targets(TEST[[2, 4]], np.array([3, 0]), np.array([2, 4]))
    write_benchmark(tmp_path / "0", Poison(POISONS, LABELS[INDEX], INDEX, 1, None, {}, many))
    loaded = read_benchmark(tmp_path / "0", IMAGES, LABELS)
    np.testing.assert_array_equal(loaded.targets.images, many.images)
    assert loaded.targets.index.tolist() == [2, 4] and loaded.targets.labels.tolist() == [3, 0]


@pytest.mark.parametrize(
    "trigger",
    [
        ScatteredPatchTrigger(np.full((3, 3, 3), 0.6, np.float32), np.array(4)),
        AdditiveTrigger(np.linspace(-0.1, 0.1, 432, dtype=np.float32).reshape(12, 12, 3)),
    ],
    ids=["scattered", "additive"],
)
@pytest.mark.parametrize("rows", [[2, 4, 9], [4]])
def test_a_trigger_that_is_no_patch_is_put_on_every_source(tmp_path, trigger, rows):
    many = Targets(TEST[rows], np.array([3, 0, 2])[: len(rows)], np.array(rows))
    poison = Poison(POISONS, LABELS[INDEX], INDEX, 1, trigger, {}, many)
    write_benchmark(tmp_path / "0", poison)
    loaded = read_benchmark(tmp_path / "0", IMAGES, LABELS, test_images=TEST)
    shown = to_uint8(np.asarray(trigger(jnp.asarray(to_float(many.images)))))
    assert (shown != many.images).any((1, 2, 3)).all()
    np.testing.assert_array_equal(loaded.targets.images, shown)
    assert loaded.targets.index.tolist() == rows and loaded.trigger is None
    picture, _ = pickle.loads((tmp_path / "0" / "target.pickle").read_bytes())
    np.testing.assert_array_equal(np.asarray(picture), shown[0])


def test_sleeper_agent_writes_a_source_instead(tmp_path):
    patched = white_patch(slice(2, 5), slice(3, 6))(jnp.asarray(to_float(TEST[7:8])))
    patched = np.asarray(to_uint8(np.asarray(patched)))[0]
    folder = write_folder(tmp_path / "0", target=(Image.fromarray(patched), 3))
    with pytest.raises(ValueError, match=r"target\.pickle: the target is not among the 10 test images$"):
        read_benchmark(folder, IMAGES, LABELS, test_images=TEST)
    (folder / "target.pickle").rename(folder / "source.pickle")
    loaded = read_benchmark(folder, IMAGES, LABELS, test_images=TEST).targets
    np.testing.assert_array_equal(loaded.images, patched[None])
    assert loaded.labels.tolist() == [3] and loaded.index.tolist() == [0]
    (folder / "source.pickle").unlink()
    with pytest.raises(ValueError, match=r"has neither target\.pickle nor source\.pickle$"):
        read_benchmark(folder, IMAGES, LABELS)


def test_rounded_and_truncated_files_are_both_accepted(tmp_path):
    assert (level_limit(8 / 255), level_limit(16 / 255), level_limit(None), level_limit(1.0)) == (9, 17, 255, 255)
    # Truncation of b - 8/255 in float32 falls one level short for some bases: 9 levels must pass and 10 must not.
    base = np.full((1, 12, 12, 3), 100, np.uint8)
    for levels, accepted in ((9, True), (10, False)):
        folder = write_folder(tmp_path / str(levels), poisons=base - levels, labels=[0], index=[0])
        if accepted:
            assert read_benchmark(folder, base, np.array([0])).how["largest_change"] == 9
        else:
            message = r"poison 0 differs by 10 levels from training image 0, 9 are allowed"
            with pytest.raises(ValueError, match=message):
                read_benchmark(folder, base, np.array([0]))
            assert len(read_benchmark(folder, base, np.array([0]), epsilon=16 / 255)) == 1
            assert len(read_benchmark(folder, base, np.array([0]), epsilon=None)) == 1


def test_half_a_level_is_written_rounded_and_read_either_way(tmp_path):
    """0.5 and 8/255: 128 and 8 where we write, 127 and 8 in files whose crafter truncates."""
    values = np.zeros((12, 12, 3), np.float32)
    values[0], values[1] = 0.5, 8 / 255
    black = np.zeros((1, 12, 12, 3), np.uint8)
    targets = Targets(black, np.array([3]), np.array([0]))
    poison = Poison(POISONS, LABELS[INDEX], INDEX, 1, AdditiveTrigger(values), {}, targets)
    write_benchmark(tmp_path / "ours", poison)
    written = read_benchmark(tmp_path / "ours", IMAGES, LABELS).targets.images[0]
    assert np.unique(written[0]).tolist() == [128] and np.unique(written[1]).tolist() == [8]
    for half in (127, 128):
        images = np.where(written == 128, half, written).astype(np.uint8)[None]
        folder = write_folder(tmp_path / str(half), poisons=images, labels=[0], index=[0])
        loaded = read_benchmark(folder, black, np.array([0]), epsilon=None)
        assert loaded.images[0, :2, 0, 0].tolist() == [half, 8]


def test_a_base_that_occurs_twice_keeps_its_first_poison(tmp_path):
    twice = np.concatenate([POISONS, POISONS[:1] ^ 1])
    folder = write_folder(tmp_path / "0", poisons=twice, labels=[1] * 4, index=np.array([9, 1, 5, 9]))
    loaded = read_benchmark(folder, IMAGES, LABELS)
    equal(loaded, POISON)
    assert loaded.how["repeated_bases"] == 1


def test_bases_are_found_in_a_training_set_of_another_order(tmp_path):
    folder = write_folder(tmp_path / "0")
    order = np.random.default_rng(3).permutation(40)
    with pytest.raises(ValueError, match=r"differs by \d+ levels from training image 9, 9 are allowed; another data"):
        read_benchmark(folder, IMAGES[order], LABELS[order])
    loaded = read_benchmark(folder, IMAGES[order], LABELS[order], search=True)
    np.testing.assert_array_equal(order[loaded.index], INDEX)


def test_a_base_that_occurs_twice_is_searched_for_once(tmp_path):
    twice = np.concatenate([POISONS[:1], POISONS[:1] ^ 1, POISONS[1:]])
    folder = write_folder(tmp_path / "0", poisons=twice, labels=[1] * 4, index=np.array([9, 9, 1, 5]))
    order = np.random.default_rng(3).permutation(40)
    loaded = read_benchmark(folder, IMAGES[order], LABELS[order], search=True)
    np.testing.assert_array_equal(order[loaded.index], INDEX)
    np.testing.assert_array_equal(loaded.images, POISONS)
    assert loaded.how["repeated_bases"] == 1


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"index": [9, 1, 40]}, {}, r"base index 40 is out of range; there are 40 training images$"),
        ({"index": [9, 1, -1]}, {}, r"base index -1 is out of range"),
        ({"index": [9, 1]}, {}, r"3 poisons and base indices of shape \(2,\); one each needed$"),
        ({"index": [9, 5, 1]}, {}, r"poison \d differs by \d+ levels from training image [15]"),
        ({"poisons": POISONS[:, :8]}, {}, r"^poisons of shape \(8, 12, 3\) do not match training images of shape"),
        ({"target": (Image.fromarray(TEST[7] ^ 1), 3)}, {"test_images": TEST}, r"target is not among the 10 test"),
        ({"target": [3, 3]}, {}, r"is not an image and a class"),
        ({"target": (Image.fromarray(TEST[7]), "cat")}, {}, r"is not an image and a class"),
        ({"target": (Image.fromarray(TEST[7]), None)}, {}, r"is not an image and a class"),
        ({"target": (Image.fromarray(TEST[7]), 2**40)}, {}, r"is not an image and a class"),
        ({"target": (Image.fromarray(TEST[7]), 3, np.ones((3, 5, 5)), 3)}, {}, r"is not an image and a class"),
        ({"target": (Image.fromarray(TEST[7]), 3, np.ones((3, 5, 5)), [1, 2, 3])}, {}, r"is not an image and a class"),
        (
            {"target": (Image.fromarray(TEST[7]), 3, np.ones(5), [1, 2])},
            {},
            r"a patch of shape \(5,\) at \[1, 2\] does",
        ),
        (
            {"target": (Image.fromarray(TEST[7][:4]), 3)},
            {},
            r"holds a target of uint8 \(4, 12, 3\); training images are uint8 \(12, 12, 3\)$",
        ),
        ({"target": (Image.fromarray(TEST[7]), 1)}, {}, r"target and poisons are both of class 1; nothing is to be"),
        (
            {"target": (Image.fromarray(TEST[7]), 3, np.ones((3, 5, 5)), [9, 0])},
            {},
            r"a patch of shape \(3, 5, 5\) at \[9, 0\] does not fit images of \(12, 12, 3\)$",
        ),
        ({}, {"epsilon": 0.0}, r"^epsilon is 0\.0; it must be above 0"),
    ],
)
def test_folders_that_do_not_fit_are_one_clear_line(tmp_path, changes, options, message):
    folder = write_folder(tmp_path / "0", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_benchmark(folder, IMAGES, LABELS, **options)
    assert "\n" not in str(caught.value)


def test_folders_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"^this poison has no target images; the benchmark's folders need at least"):
        write_benchmark(tmp_path / "0", Poison(POISONS, LABELS[INDEX], INDEX))
    with pytest.raises(ValueError, match=r"^positions have shape \(2,\); one for each of 3 poisons"):
        write_benchmark(tmp_path / "0", POISON, positions=np.array([1, 2]))
    assert not (tmp_path / "0").exists()
    write_benchmark(tmp_path / "0", POISON)
    with pytest.raises(ValueError, match=r"exists already"):
        write_benchmark(tmp_path / "0", POISON)
    write_benchmark(tmp_path / "0", POISON, force=True)


def test_setups_come_back_and_are_checked(tmp_path):
    setups = [Setup(3, 7, 1, INDEX), Setup(0, 2, 2, np.array([2, 6, 2]))]
    write_setups(tmp_path / "setups.pickle", setups)
    plain = pickle.loads((tmp_path / "setups.pickle").read_bytes())
    assert set(plain[0]) == {"target class", "target index", "base class", "base indices"}
    assert isinstance(plain[0]["target index"], np.int64) and plain[0]["base indices"].dtype == np.int64
    loaded = read_setups(tmp_path / "setups.pickle", LABELS)
    assert [(each.target_class, each.target_index, each.base_class) for each in loaded] == [(3, 7, 1), (0, 2, 2)]
    np.testing.assert_array_equal(loaded[1].base_index, [2, 6, 2])
    with pytest.raises(ValueError, match=r"set-up 0: training image 9 has label 2 and not the base class 1; is the"):
        read_setups(tmp_path / "setups.pickle", (LABELS + 1) % 4)
    with pytest.raises(ValueError, match=r"set-up 0 has base index 9; there are 8 training images$"):
        read_setups(tmp_path / "setups.pickle", LABELS[:8])


@pytest.mark.parametrize(
    ("name", "first", "bases", "targets"),
    [
        ("cifar10_transfer_learning", (4, 9139, 7, [30330, 7829, 47673, 14780]), 63_087_998, 514_914),
        ("cifar10_from_scratch", (7, 7762, 3, [2386, 37215, 23942, 15836]), 1_253_187_243, 443_500),
        ("tinyimagenet_transfer_learning", (13, 2584, 29, [14739, 14522, 14818, 14581]), 586_612_714, 249_879),
        ("tinyimagenet_from_scratch", (89, 5903, 50, [25300, 25264, 25006, 25400]), 1_277_720_206, 473_454),
    ],
)
def test_checksums_of_the_published_setups(poison_setups, name, first, bases, targets):
    setups = read_setups(poison_setups / f"{name}.pickle")
    assert len(setups) == 100
    start = setups[0]
    assert (start.target_class, start.target_index, start.base_class, start.base_index[:4].tolist()) == first
    assert sum(int(setup.base_index.sum()) for setup in setups) == bases
    assert sum(setup.target_index for setup in setups) == targets
    if name.startswith("tinyimagenet"):
        assert all((setup.base_index // 500 == setup.base_class).all() for setup in setups)
    if name == "cifar10_transfer_learning":
        repeated = [len(setup.base_index) - len(np.unique(setup.base_index)) for setup in setups]
        assert {number: count for number, count in enumerate(repeated) if count} == {78: 1, 84: 1}
    if name == "cifar10_from_scratch":
        assert len({setup.target_index for setup in setups}) == 99


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "does not hold a list of set-ups"),
        ([{"target class": 1}], "set-up 0 lacks a class or an index"),
        (
            [{"target class": 1, "target index": 2, "base class": 1, "base indices": [3]}],
            "set-up 0 has class 1 as both target and base class",
        ),
        (
            [{"target class": 1, "target index": 2, "base class": 3, "base indices": [0.5]}],
            r"set-up 0 lacks a class or an index \(base indices are float64 \(1,\)\)",
        ),
        (
            [{"target class": 1, "target index": 2, "base class": 3, "base indices": [[1], [2]]}],
            r"set-up 0 lacks a class or an index \(base indices are int64 \(2, 1\)\)",
        ),
    ],
)
def test_setups_that_are_none(tmp_path, content, message):
    dump(tmp_path / "setups.pickle", content)
    with pytest.raises(ValueError, match=message):
        read_setups(tmp_path / "setups.pickle")


def test_setups_of_images_that_are_not_there(tmp_path):
    for bases, complaint in (([-1, 3], "base index -1; there are 10"), ([], "no base indices; at least one")):
        trial = {"target class": 1, "target index": 2, "base class": 3, "base indices": bases}
        dump(tmp_path / "setups.pickle", [trial])
        with pytest.raises(ValueError, match=complaint):
            read_setups(tmp_path / "setups.pickle", np.full(10, 3))


def test_metapoison_package_comes_back(tmp_path):
    train, test = Dataset(IMAGES, LABELS, tuple("abcd")), Dataset(TEST, LABELS[:10], tuple("abcd"))
    poison = Poison(POISONS, LABELS[INDEX], INDEX, 1, None, {}, TARGETS)
    write_metapoison(tmp_path / "package.pkl", poison, train, test)
    plain = pickle.loads((tmp_path / "package.pkl").read_bytes())
    assert plain["xtrain"].shape == (40, 12, 12, 3) and plain["xtrain"].max() > 200
    assert (np.diff(plain["ytrain"]) >= 0).all()
    np.testing.assert_array_equal(np.sort(plain["xtrain"][10:13], 0), np.sort(POISONS, 0))
    loaded = read_metapoison(tmp_path / "package.pkl", IMAGES, LABELS, epsilon=8 / 255, test_images=TEST)
    order = np.argsort(loaded.index)
    np.testing.assert_array_equal(loaded.index[order], np.sort(INDEX))
    np.testing.assert_array_equal(loaded.images[order], POISONS[np.argsort(INDEX)])
    assert loaded.target == 1 and loaded.targets.index.tolist() == [7]
    with pytest.raises(ValueError, match=r"poison \d has no base of label 1 within 3 levels"):
        read_metapoison(tmp_path / "package.pkl", IMAGES, LABELS, epsilon=2 / 255)
    dump(tmp_path / "clean.pkl", {**plain, "xtrain": IMAGES.astype(np.float32), "ytrain": LABELS})
    with pytest.raises(ValueError, match=r"holds no poison; all 40 training images are clean$"):
        read_metapoison(tmp_path / "clean.pkl", IMAGES, LABELS)
    for wanted in ([], [int(TARGETS.labels[0])], [1, 2]):
        dump(tmp_path / "wrong.pkl", {**plain, "ytargetadv": np.array(wanted, np.int32)})
        with pytest.raises(ValueError, match=r"wrong.pkl: ytargetadv holds .*; it must be one class, and not the tar"):
            read_metapoison(tmp_path / "wrong.pkl", IMAGES, LABELS, epsilon=8 / 255)
    dump(tmp_path / "other.pkl", {"xtrain": 1})
    with pytest.raises(ValueError, match=r"is not a MetaPoison package; xtrain, ytrain"):
        read_metapoison(tmp_path / "other.pkl", IMAGES, LABELS)


def test_bullseye_file_comes_back_normalised(tmp_path):
    write_bullseye(tmp_path / "poison.pth", POISON, positions=np.array([3, 4, 2]))
    loaded = read_bullseye(tmp_path / "poison.pth", IMAGES, LABELS)
    equal(loaded, POISON)
    content = load_pickle(tmp_path / "poison.pth")
    assert content["idx"] == [3, 4, 2] and content["poison"][0][0].shape == (3, 12, 12)
    normalised = (POISONS / 255 - [0.4914, 0.4822, 0.4465]) / [0.2023, 0.1994, 0.2010]
    wanted = normalised.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(np.stack([tensor for tensor, _ in content["poison"]]), wanted, atol=1e-5)
    with pytest.raises(ValueError, match=r"poison \d differs by \d+ levels from training image"):
        read_bullseye(tmp_path / "poison.pth", IMAGES, LABELS, search=False)
    gray = Poison(POISONS[..., :1], LABELS[INDEX], INDEX, 1)
    with pytest.raises(ValueError, match="mean has 3 numbers for images of 1 channels"):
        write_bullseye(tmp_path / "gray.pth", gray)
    dump(tmp_path / "other.pth", {"poison": []})
    with pytest.raises(ValueError, match=r"is not a file of Bullseye Polytope; poison and idx are needed$"):
        read_bullseye(tmp_path / "other.pth", IMAGES, LABELS)


def test_every_base_is_taken_once():
    same = np.stack([IMAGES[0]] * 2)
    images = np.concatenate([same, IMAGES[1:3]])
    np.testing.assert_array_equal(locate(same, np.zeros(2, int), images, np.zeros(4, int), 0), [0, 1])
    with pytest.raises(ValueError, match=r"^poison 2 has no base of label 0 within 0 levels"):
        locate(np.stack([IMAGES[0]] * 3), np.zeros(3, int), images, np.zeros(4, int), 0)
    np.testing.assert_array_equal(exact_positions(np.stack([IMAGES[0], IMAGES[0], IMAGES[9]]), images), [0, 1, -1])


def test_patch_trigger_and_file_agree_on_pixels(tmp_path):
    trigger = white_patch(slice(0, 2), slice(9, 12))
    write_benchmark(tmp_path / "0", Poison(POISONS, LABELS[INDEX], INDEX, 1, trigger, {}, TARGETS))
    loaded = read_benchmark(tmp_path / "0", IMAGES, LABELS)
    floats = jnp.asarray(TEST, jnp.float32) / 255
    np.testing.assert_array_equal(loaded.trigger(floats), trigger(floats))
