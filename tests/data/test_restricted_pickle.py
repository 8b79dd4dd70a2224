"""The restricted unpickler: arrays, tensors, images and containers come in, everything else is refused unexecuted."""

import base64
import collections
import decimal
import io
import os
import pickle
import zipfile
import zlib

import numpy as np
from PIL import Image
import pytest

from jaxpurify.data import restricted_pickle
from jaxpurify.data.restricted_pickle import load_pickle

# torch 2.13: torch.save(torch.tensor([1.5, 2.5])), a plain pickle of an int64 tensor [[30330, 7829], [47673, 14780]]
# transposed, and a legacy torch.save of {"poison": [(arange(12).reshape(3, 2, 2) / 7 - 1, 8)], "idx": [5]}.
ZIPPED = (
    "eNqlVL9v00AUfrYbJxgpbRGookMFA1KQII2dn6aCVBZ48UAaBIpYLNc+goUb9+xLEExIKEiInZG/ohIMDGyMCCYGtkpITKyM3MXUsR2aiPIk62T7"
    "fe/73t33rmMISwCFAszECpwBK7AfuiO06VjEKu8/8nStCPdT8Yy3iU+zyuaQuF4omQHaHbqeYxI0CP3AHCkShlKpl6cVQ5pp9RHmIoike75F7kQf"
    "Jcz3OJpTwUJPoKu9P8RLBk9wbscAgx9j0eDGOP/Stn3PQzZx/UEo3Q4cFCDnpmsTCRcud/EpgqUuPl3uGPkCnN0+eE0rsadzbJdrcCnusvzAD/Ys"
    "Yo5QENL6unYx0+xfQmZUb39+e87Ec3Op1qE5pfqzF6bluf3BHhoQXasuZpuNRo0JaD/GP3hKwc8VsArtWMDuE4J8tn26tnUS3qPwXEI8xDSMrx+e"
    "FymLOFdDEW6kXLVZ0bVr/yEA4EMb4MI2U/Du1eEBoyzMVbAMW7GC+KSbJ5VQlRjz5zf9u4v3fwOUqQEmzYcocKkDnlrMz6br6Fr5H4XI9abSklW1"
    "Lsuteq1Rq1aURqWh1GtVVWnWZUVV1WpLjlxy7tb7FyWqozRRyTGxU52JaVmZUZ69B7Lo5ACspZDfE+jMfGWLJE28niqyw8GcycnWSRpxNVXnS6JO"
    "PABZeNJFxRT8Hg8Z72axSR8sp7BfE9hj+k8ez0YK3BVggXE6hiheObKZcDVG5jPrJy5afwnRSnGTXx9z0Xt0g+XECJOf5Ee5vwEg6Flm"
)
PICKLED = (
    "eNptkD9LAzEYxu9fLVytiJsO4nguB7YFe6uIy/m3LlkkXO9iG4mXJpcrtFDooqjcZrq5Cn4G8Qv5EQQH3zarGd6HvPnleZNn7i3ebWu1qnXFZToM"
    "cakoK3S1hSXpl5RlWJG84BKPW/pVB1XTYAVIMiC62sSMJxm+lfwe9yeKFEAd7YDp3Hnx2e/byc/e3cfldjh3zr5dqDNhBWgTBo4kVzzlDI+JLCjP"
    "hQ0AasIJo0oxgkme0SQXzhPyoakmI4ILOiWFcGfCC1ANmsWQSyVqsYNc2NFcibXYQ97Sg+cDUY+9soSZAaovYfNkYaWrL/ingFybni9stAFI1IkO"
    "2lGnG7Vbh92OMLbpqBRu7J0r4V2B2Y2w/mPtJPRMktZ0bHSxazT6NPoVGdUPuqdjK3Zi51HH9rI+Vw2IgpFUQRKQfuNCZkSS7JimCgLd72kFd8I/"
    "swt90w=="
)
LEGACY = (
    "eNptT81OwkAQLv0BXEGxN28eONQLiUAMveDFkJCNf3hpYkhT2w2sWbpMuyVqQsJJ1KNnH8AnUE/0QXgCH8HEg1sJNzfZnZ1vvplvvpn6jNjPa+d7"
    "7+btfLc2U0++NPlOQbGciqIo44gL7nPmTkgUUx5CThKcsqwwKgQjLgkD6oWgPjpIguJuTNyY3pMYtCnolmNIMB7ySICBVUeTGQ0F5LHu6NkMHg6g"
    "gPUkWWvmM01O40ypD6oveOQPa24iKIuRG5HrhLLAFSSMeeRO6gg0y3IKmYhkegMC+qoFdRj3xOUKRGA4W5JjN+2Dht1s2Y16vdWC/N8+/jiRK5RO"
    "BRQvsII1rGJ1DhtYl5/cHNCTL+0z4gvpPkZnUUAiEhxTXyDY3O9BSUC5B1u4+ADb3spgcAuVPuxgw8ts9UH5Tzzn1UrK+szSj9FVGi4P02rXTN9H"
    "y0W1+yKvuciqVtdsy7z9OVrKaB79AsSFfnE="
)


class Call:
    """An object whose pickle calls `function` when it is loaded."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def load(tmp_path, content, protocol=4):
    path = tmp_path / "file.pickle"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return load_pickle(path)


@pytest.mark.parametrize("protocol", range(6))
def test_everything_that_poison_files_hold(tmp_path, protocol):
    array = np.arange(12).reshape(3, 4)
    picture, grey = (np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8) for shape in ((4, 5, 3), (4, 5)))
    content = {
        "pairs": [(Image.fromarray(picture), np.int64(3)), (Image.fromarray(grey), 4)],
        "arrays": (array, np.asfortranarray(array * 1.5), array[:, ::-1], np.arange(3, dtype=">i4"), np.array([], int)),
        "others": [None, True, 1.5, 2**70, "ö", b"\x00\xff", np.float32(0.5), np.array([True, False]), {1: "a"}],
    }
    loaded = load(tmp_path, content, protocol)
    np.testing.assert_array_equal(loaded["pairs"][0][0], picture)
    np.testing.assert_array_equal(loaded["pairs"][1][0], grey[..., None])
    assert [label for _, label in loaded["pairs"]] == [3, 4]
    for found, wanted in zip(loaded["arrays"], content["arrays"], strict=True):
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype
    assert loaded["others"][:7] == content["others"][:7] and loaded["others"][8] == {1: "a"}
    np.testing.assert_array_equal(loaded["others"][7], [True, False])


def test_tensors_without_torch(tmp_path):
    zipped, pickled, legacy = (zlib.decompress(base64.b64decode(each)) for each in (ZIPPED, PICKLED, LEGACY))
    np.testing.assert_array_equal(load(tmp_path, zipped), np.array([1.5, 2.5], np.float32))
    tensor = load(tmp_path, pickled)
    assert tensor.dtype == np.int64
    np.testing.assert_array_equal(tensor, [[30330, 47673], [7829, 14780]])
    content = load(tmp_path, legacy)
    assert content["idx"] == [5] and content["poison"][0][1] == 8
    np.testing.assert_allclose(content["poison"][0][0], np.arange(12).reshape(3, 2, 2) / 7 - 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (lambda marker: Call(os.system, f"touch {marker}"), r"(posix|nt)\.system"),
        (lambda marker: [Call(open, str(marker), "w")], r"(_io|io)\.open"),
        (lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"), r"builtins\.eval"),
        (lambda marker: Call(np.save, str(marker), 1), r"numpy\.save"),
        (lambda marker: Call(Image.open, str(marker)), r"PIL\.Image\.open"),
        (lambda marker: Call(getattr, [], "append"), r"builtins\.getattr"),
        (lambda marker: decimal.Decimal(1), r"decimal\.Decimal"),
        (lambda marker: collections.Counter("a"), r"collections\.Counter"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_foreign_name_is_refused_and_nothing_runs(tmp_path, content, name, protocol):
    marker = tmp_path / "executed"
    with pytest.raises(ValueError, match=name) as caught:
        load(tmp_path, content(marker), protocol)
    assert "\n" not in str(caught.value) and not marker.exists()


def test_a_foreign_name_inside_a_tensor_is_refused_too(tmp_path):
    marker = tmp_path / "executed"
    inner = pickle.dumps(Call(os.system, f"touch {marker}"), 2)
    hidden = b"\x80\x04ctorch.storage\n_load_from_bytes\n" + pickle.dumps((inner,), 2)[2:-1] + b"R."
    with pytest.raises(ValueError, match=r"names (posix|nt)\.system, which is not accepted"):
        load(tmp_path, hidden)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", inner)
    with pytest.raises(ValueError, match=r"names (posix|nt)\.system, which is not accepted"):
        load(tmp_path, buffer.getvalue())
    assert not marker.exists()


def test_a_view_outside_of_its_storage_is_refused(tmp_path):
    pickled = zlib.decompress(base64.b64decode(PICKLED))
    shape = b"K\x02K\x02\x86"
    assert pickled.count(shape) == 1
    unframed = pickled[:2] + pickled[11:]
    others = {b"K\xffK\xff\x86": "larger than its storage", b"J\xff\xff\xff\xffK\x02\x86": "do not fit"}
    for other, reason in others.items():
        with pytest.raises(ValueError, match=reason):
            load(tmp_path, unframed.replace(shape, other))
    np.testing.assert_array_equal(load(tmp_path, unframed), [[30330, 47673], [7829, 14780]])


def test_a_pickle_cannot_change_the_reader(tmp_path):
    before = {name: dict(vars(kind)) for name, kind in restricted_pickle._KNOWN.items()}
    # The state (None, {"resolve": 1}) on the class itself, which `pickle` would set as its attribute.
    for name in ("cnumpy\nndarray\n", "cPIL.Image\nImage\n", "ctorch._utils\n_rebuild_tensor_v2\n"):
        content = b"\x80\x02" + name.encode() + pickle.dumps((None, {"resolve": 1}), 2)[2:-1] + b"b."
        with pytest.raises(ValueError, match="is not a pickle of arrays and images"):
            load(tmp_path, content)
    assert before == {name: dict(vars(kind)) for name, kind in restricted_pickle._KNOWN.items()}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Ran out of input"),
        (b"not a pickle", "is not a pickle of arrays"),
        (pickle.dumps(np.arange(9))[:-20], "truncated|exhausted"),
        (np.array([1, None], object), "arrays of type O8? are not accepted"),
        (Image.new("P", (2, 2)), "an image of mode P; L and RGB are accepted"),
        (Image.Image, "a value of type"),
        (b"PK\x03\x04 and no more", "not a zip file"),
    ],
)
def test_damaged_and_unusual_files_are_one_clear_line(tmp_path, content, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        load(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_shared_containers_are_read_once(tmp_path):
    nested = [7]
    for _ in range(60):  # a file of some hundred bytes, 2**60 sevens if written out
        nested = [nested, nested]
    loaded = load(tmp_path, nested)
    depth = 0
    while isinstance(loaded[0], list):
        assert loaded[0] is loaded[1]
        loaded, depth = loaded[0], depth + 1
    assert (loaded, depth) == ([7], 60)


def test_endless_containers_and_missing_files(tmp_path):
    endless = []
    endless.append(endless)
    with pytest.raises(ValueError, match="maximum recursion depth"):
        load(tmp_path, endless)
    with pytest.raises(ValueError, match=r"nothing\.pickle cannot be read \(No such file"):
        load_pickle(tmp_path / "nothing.pickle")
