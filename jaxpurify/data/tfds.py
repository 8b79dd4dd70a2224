"""Data sets of TensorFlow Datasets, read and written without TensorFlow (ArrayRecord files of `tf.train.Example`).

The directory is the environment variable TFDS_DATA_DIR, or else TFDS's own default, ~/tensorflow_datasets.
"""

from collections.abc import Iterator
import json
import os
from pathlib import Path
import re
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
import tensorflow_datasets
from tensorflow_datasets.proto import tf_example_pb2

from jaxpurify.data.dataset import Dataset
from jaxpurify.data.decode import check_size, decode, encode, stack
from jaxpurify.destination import replacing

_NAME = re.compile(r"(?P<name>[\w./:-]+)/(?P<split>\w+)")
_CHUNK = 1000
_Example: Any = tf_example_pb2.Example  # pyrefly: ignore[missing-attribute]  (protobuf makes it when imported)


def read_tfds(path: str, rows: slice = slice(None), *, size: int | None = None) -> Dataset:
    """Reads NAME/SPLIT, such as cifar10/train, as it is prepared on this machine; nothing is downloaded.

    The order is the one of TFDS, which is not the order of the original files of CIFAR-10.

    Args:
      path: "NAME/SPLIT"; NAME may carry a configuration and a version as TFDS writes them.
      rows: which examples, as a Python slice.
      size: every image is stretched to `size` x `size` pixels; None needs images of one size.

    Raises:
      ValueError: the directory, data set or split is absent, it is not labelled images, or sizes differ.
    """
    check_size(size)
    builder, split = _open(path)
    image, label = _features(builder, path)
    count = builder.info.splits[split].num_examples
    positions = range(count)[rows]
    if not positions:
        raise ValueError(f"the slice selects none of the {count} examples of tfds:{path}")
    images, labels = [], []
    for position, example in zip(positions, _examples(builder, split, positions), strict=True):
        feature = example.features.feature
        content = feature[image].bytes_list.value
        images.append(decode(content[0] if content else b"", f"{path} example {position}", size=size))
        labels.extend(feature[label].int64_list.value[:1])
    names = [f"example {position}" for position in positions]
    classes = tuple(builder.info.features[label].names)
    return Dataset(stack(images, names), np.array(labels, np.int32), classes, source=f"tfds:{path}")


def stored_at(path: str) -> Path:
    """The folder that holds the files of "NAME/SPLIT".

    Raises:
      ValueError: the directory, data set or split is absent.
    """
    return Path(_open(path)[0].data_path)


def write_tfds(
    dataset: Dataset, path: str, destination: Path, rows: slice = slice(None), *, force: bool = False
) -> None:
    """Writes a TFDS data directory: `path` ("NAME/SPLIT") is read from it with TFDS_DATA_DIR set to `destination`.

    It holds that one split, every image as PNG (lossless) with its label. Name, configuration and version stay
    those of the original, which must be at hand. Other features, such as identifiers, are carried over from the
    examples `rows` of the original if `dataset` has as many, and are left out otherwise.

    Raises:
      ValueError: the original is absent, or `destination` may not be written.
    """
    builder, split = _open(path)
    image, label = _features(builder, path)
    original = Path(builder.data_path)
    positions = range(builder.info.splits[split].num_examples)[rows]
    carried = len(positions) == len(dataset)
    examples = _examples(builder, split, positions) if carried else (_Example() for _ in dataset.labels)
    with replacing(destination, force=force, source=original) as temporary:
        folder = temporary / original.relative_to(builder.data_dir_root)
        folder.mkdir(parents=True)
        file = folder / f"{builder.info.name}-{split}.array_record-00000-of-00001"
        written = _write_records(dataset, file, examples, image, label)
        for names in original.glob("*.labels.txt"):
            (folder / names.name).write_bytes(names.read_bytes())
        (folder / f"{label}.labels.txt").write_text("\n".join(dataset.classes) + "\n")
        features = _json(original / "features.json")
        kept = features["featuresDict"]["features"]
        if not carried:
            features["featuresDict"]["features"] = {image: kept[image], label: kept[label]}
        dimensions = [str(number) for number in dataset.images.shape[1:]]
        kept[image]["image"] = {"dtype": "uint8", "shape": {"dimensions": dimensions}, "encodingFormat": "png"}
        (folder / "features.json").write_text(json.dumps(features, indent=2))
        info = _json(original / "dataset_info.json")
        info["fileFormat"] = "array_record"
        info["splits"] = [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(written),
                "shardLengths": [str(len(dataset))],
            }
        ]
        (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))


def _examples(builder: Any, split: str, positions: range) -> Iterator[Any]:
    """The `tf.train.Example` records at `positions`."""
    raw = tensorflow_datasets.decode.DeserializeMethod.RAW_BYTES
    try:
        records = builder.as_data_source(split, deserialize_method=raw)
    except NotImplementedError as error:
        name = builder.info.name
        raise ValueError(f"{name} is not stored as ArrayRecord in {builder.data_path}; {_prepare(name)}") from error
    for start in range(0, len(positions), _CHUNK):
        for record in records.__getitems__(list(positions[start : start + _CHUNK])):
            yield _Example.FromString(record)


def _open(path: str) -> tuple[Any, str]:
    """The builder and the split that `path` names, or a `ValueError` that says what is missing."""
    match = _NAME.fullmatch(path)
    if match is None:
        raise ValueError(f"tfds:{path} does not name a split; write tfds:NAME/SPLIT, such as tfds:cifar10/train")
    name, split = match["name"], match["split"]
    directory = os.environ.get("TFDS_DATA_DIR")
    if directory is not None and not os.path.isdir(directory):
        raise ValueError(f"TFDS_DATA_DIR is {directory!r}, which is not a folder; {_prepare(path)}")
    try:
        builder = tensorflow_datasets.builder(name, data_dir=directory)
        splits = builder.info.splits
    except Exception as error:  # TFDS raises many kinds, with pages of advice; the first line says what is wrong
        raise ValueError(f"tfds:{path} cannot be opened ({_first_line(error)}); {_prepare(path)}") from error
    if not splits:
        raise ValueError(f"{name} is not prepared in {builder.data_dir}; {_prepare(path)}")
    if split not in splits:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(sorted(splits))}")
    return builder, split


def _features(builder: Any, path: str) -> tuple[str, str]:
    """The names of the image and of the label among the features."""
    features = builder.info.features
    kinds = tensorflow_datasets.features
    try:
        images = [name for name, feature in features.items() if type(feature) is kinds.Image]
        labels = [name for name, feature in features.items() if isinstance(feature, kinds.ClassLabel)]
    except AttributeError:
        images, labels = [], []
    supervised = builder.info.supervised_keys or ()
    for found in (images, labels):
        found.sort(key=lambda name: name not in supervised)
    if not images or not labels:
        raise ValueError(f"tfds:{path} is not labelled images; it needs an Image and a ClassLabel feature")
    return images[0], labels[0]


def _write_records(dataset: Dataset, file: Path, examples: Iterator[Any], image: str, label: str) -> int:
    """Puts every image and label into its example, writes one ArrayRecord file; the bytes in its records."""
    written = 0
    try:
        writer = ArrayRecordWriter(str(file), "group_size:1")
        try:
            for pixels, number, example in zip(dataset.images, dataset.labels, examples, strict=True):
                example.features.feature[image].bytes_list.value[:] = [encode(pixels)]
                example.features.feature[label].int64_list.value[:] = [int(number)]
                record = example.SerializeToString(deterministic=True)
                writer.write(record)
                written += len(record)
        finally:
            writer.close()
    except RuntimeError as error:  # what ArrayRecord raises for a full disk
        raise OSError(f"{file.name} cannot be written ({_first_line(error)})") from error
    return written


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _prepare(path: str) -> str:
    name = path.split("/")[0]
    return (
        f"set TFDS_DATA_DIR to a TFDS directory that holds it, or prepare it once, with TensorFlow installed, by "
        f"tensorflow_datasets.builder({name!r}, file_format='array_record').download_and_prepare()"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
