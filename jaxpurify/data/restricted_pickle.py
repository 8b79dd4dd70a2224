"""Reads pickles and torch files from strangers: arrays, tensors, PIL images and plain containers, nothing else.

No class or function that a file names is ever imported or called. Each name that is known is replaced by a class of
this module that keeps what the file says about one array; plain values come out. Any other name is refused before
anything is built from it.
"""

import collections
import io
import math
from pathlib import Path
import pickle
from typing import Any
import zipfile

import numpy as np

from jaxpurify.data.damaged import DAMAGED

_BROKEN = (*DAMAGED, pickle.UnpicklingError, IndexError, ImportError, OverflowError, MemoryError)
_CHANNELS = {"L": 1, "RGB": 3}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}


def load_pickle(path: str | Path) -> Any:
    """What a pickle or torch file holds, as NumPy arrays, numbers, strings and plain containers.

    Arrays of numbers and tensors become arrays, PIL images of modes L and RGB uint8 arrays [H, W, 1 or 3].

    Raises:
      ValueError: the file is missing or damaged, or names a class or function that is not one of these; nothing in
        it is executed.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    try:
        return _resolve(_load_zip(content) if content[:4] == b"PK\x03\x04" else _load(content))
    except _BROKEN as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is not a pickle of arrays and images that can be read ({reason})") from error


class _Sealed(type):
    """Classes whose attributes a pickle cannot set."""

    def __setattr__(cls, name, value):
        raise pickle.UnpicklingError(f"a pickle may not set {name} of {cls.__name__}")


class _Type(metaclass=_Sealed):
    """`numpy.dtype`: numbers and truth values only."""

    def __init__(self, code, align=False, copy=True):
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in "biuf" or self.dtype.names:
            raise pickle.UnpicklingError(f"arrays of type {code} are not accepted, numbers are")

    def __setstate__(self, state):
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(metaclass=_Sealed):
    """`numpy.ndarray`, by the function that makes an empty one."""

    def __init__(self, kind, shape, code):
        self.value = None

    def __setstate__(self, state):
        _, shape, kind, fortran, content = state
        if isinstance(content, str):  # bytes of a Python 2 pickle
            content = content.encode("latin1")
        self.value = np.frombuffer(content, _dtype(kind)).reshape(shape, order="F" if fortran else "C").copy()

    def resolve(self):
        if self.value is None:
            raise pickle.UnpicklingError("an array without content")
        return self.value


class _Buffer(metaclass=_Sealed):
    """An array from a buffer (protocol 5)."""

    def __init__(self, content, kind, shape, order):
        self.value = np.frombuffer(content, _dtype(kind)).reshape(shape, order="F" if order == "F" else "C").copy()

    def resolve(self):
        return self.value


class _Scalar(metaclass=_Sealed):
    """A NumPy number."""

    def __init__(self, kind, content):
        if isinstance(content, str):
            content = content.encode("latin1")
        self.value = np.frombuffer(content, _dtype(kind), 1)[0]

    def resolve(self):
        return self.value


class _Picture(metaclass=_Sealed):
    """`PIL.Image.Image`, whose state is [info, mode, (width, height), palette, bytes]."""

    def __setstate__(self, state):
        _, mode, (width, height), _, content = state[:5]
        if mode not in _CHANNELS:
            raise pickle.UnpicklingError(f"an image of mode {mode}; L and RGB are accepted")
        self.value = np.frombuffer(content, np.uint8).reshape(height, width, _CHANNELS[mode]).copy()

    def resolve(self):
        return self.value


class _Placeholder(metaclass=_Sealed):
    """A name that is only passed on: `ndarray` as an argument, the base of an object."""


class _Rebuilt(metaclass=_Sealed):
    """The object that the oldest protocols rebuild: only images come in this way."""

    def __new__(cls, kind, base, state):
        if kind is not _Picture:
            raise pickle.UnpicklingError("an object that is not an image")
        return _Picture()


class _Encoded(metaclass=_Sealed):
    """`_codecs.encode`, which old protocols call for bytes."""

    def __new__(cls, text, encoding):
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"bytes in the encoding {encoding}")
        return text.encode("latin1")


class _NoBytes(metaclass=_Sealed):
    """`bytes()`, by which old protocols write an empty string of bytes."""

    def __new__(cls):
        return b""


class _Ordered(metaclass=_Sealed):
    """`collections.OrderedDict`, always empty in the files that are read: the hooks of a tensor."""

    def __new__(cls, items=()):
        return dict(items)


class _Storage:
    """The numbers behind tensors; those of old torch files follow after the objects."""

    def __init__(self, dtype, content=None):
        self.dtype, self.content = dtype, content


class _StorageBytes(metaclass=_Sealed):
    """`torch.storage._load_from_bytes`: the argument is a whole torch file, read by the same rules."""

    def __new__(cls, content):
        storage = _load(content)
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("bytes that are not the storage of a tensor")
        return storage


class _Tensor(metaclass=_Sealed):
    """A tensor as a view of its storage."""

    def __init__(self, storage, offset, shape, strides, *_):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def resolve(self):
        numbers = np.frombuffer(self.storage.content, self.storage.dtype)
        if len(self.shape) != len(self.strides) or min((self.offset, *self.shape, *self.strides)) < 0:
            raise pickle.UnpicklingError("a tensor whose shape and strides do not fit")
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, numbers.dtype)
        # A view outside of its storage would read memory of this process.
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        if last >= len(numbers) or math.prod(self.shape) > len(numbers):
            raise pickle.UnpicklingError("a tensor larger than its storage")
        steps = [step * numbers.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, steps).copy()


class _Parameter(metaclass=_Sealed):
    """A trainable tensor: the tensor."""

    def __new__(cls, tensor, *_):
        return tensor


_KNOWN: dict[tuple[str, str], type] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Placeholder,
    ("builtins", "object"): _Placeholder,
    ("copyreg", "_reconstructor"): _Rebuilt,
    ("builtins", "bytes"): _NoBytes,
    ("_codecs", "encode"): _Encoded,
    ("collections", "OrderedDict"): _Ordered,
    ("PIL.Image", "Image"): _Picture,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("torch.storage", "_load_from_bytes"): _StorageBytes,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy._core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
}


class _Unpickler(pickle.Unpickler):
    """Unpickler that knows the names above; `storage` finds the numbers of tensors."""

    def __init__(self, file, storage=None):
        super().__init__(file, encoding="latin1")
        self.storage = storage

    def find_class(self, module, name):
        module = {"copy_reg": "copyreg", "__builtin__": "builtins"}.get(module, module)  # Python 2's names
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not accepted")
        return _KNOWN[module, name]

    def persistent_load(self, pid):
        if self.storage is None or pid[0] != "storage" or pid[1] not in _STORAGES.values():
            raise pickle.UnpicklingError("a reference to something that is not the storage of a tensor")
        return self.storage(pid[1], str(pid[2]))


def _load(content):
    """A pickle, or a torch file of the old form: five pickles and the numbers of every storage."""
    file = io.BytesIO(content)
    first = _Unpickler(file).load()
    if first != _LEGACY_MAGIC:
        return first
    for _ in range(2):  # protocol and machine
        _Unpickler(file).load()
    storages = {}

    def find(dtype, key):
        return storages.setdefault(key, _Storage(dtype))

    loaded = _Unpickler(file, find).load()
    for key in _Unpickler(file).load():
        count = int.from_bytes(file.read(8), "little")
        storages[key].content = file.read(count * np.dtype(storages[key].dtype).itemsize)
    return loaded


def _load_zip(content):
    """A torch file of the present form: data.pkl and one member a storage, in one folder."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("a zip file without data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise pickle.UnpicklingError("numbers in big-endian order")

        def find(dtype, key):
            return _Storage(dtype, archive.read(f"{folder}data/{key}"))

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), find).load()


def _dtype(kind):
    if not isinstance(kind, _Type):
        raise pickle.UnpicklingError("an array without a type")
    return kind.dtype


def _resolve(value, done=None):
    """The plain value behind what the unpickler built; containers of other kinds cannot occur.

    `done` holds finished containers by identity: one that occurs twice is resolved once, else a few bytes of nested
    pairs would keep a reader busy for hours.
    """
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, dict):
        done[id(value)] = {_resolve(key, done): _resolve(each, done) for key, each in value.items()}
        return done[id(value)]
    if isinstance(value, list | tuple | set | frozenset | collections.deque):
        done[id(value)] = type(value)([_resolve(each, done) for each in value])
        return done[id(value)]
    if hasattr(type(value), "resolve"):
        return value.resolve()
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | bytearray):
        return value
    raise pickle.UnpicklingError(f"a value of type {type(value).__name__.strip('_').lower()}")
