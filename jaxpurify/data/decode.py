"""Encoded image files to uint8 arrays of one size, and back to PNG, with errors that name the file."""

from collections.abc import Sequence
import io
import struct
import zlib

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")
_GREY = ("1", "L", "LA", "La")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def decode(content: bytes, name: str, *, size: int | None = None) -> np.ndarray:
    """One encoded image to uint8 [H, W, 1 or 3]; `name` appears in errors.

    Grey images keep one channel; palettes and other colour spaces become RGB; transparency is dropped; 16 bit grey
    is rounded to 8. The rotation tag of photographs is ignored, as training pipelines do.

    Args:
      content: the bytes of a PNG, JPEG, BMP, WebP or PPM file.
      name: what to call it in an error.
      size: the image is stretched to `size` x `size` pixels (Lanczos, antialiased); None leaves it as it is.

    Raises:
      ValueError: the bytes are not a whole image of these kinds.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            opened.load()
            image = _eight_bits(opened)
    except _BROKEN as error:
        raise ValueError(f"{name} is not a readable image ({_line(error)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} is too large to be opened safely ({_line(error)})") from error
    if image is None:
        raise ValueError(f"{name} has pixels of type {opened.mode}; 8 or 16 bit grey and 8 bit colour are accepted")
    array = np.asarray(image)
    return resize(array[..., None] if array.ndim == 2 else array, size)


def encode(image: np.ndarray) -> bytes:
    """One image uint8 [H, W, 1 or 3] as the bytes of a PNG file: lossless."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def resize(image: np.ndarray, size: int | None) -> np.ndarray:
    """One image uint8 [H, W, C] stretched to [size, size, C] (Lanczos, antialiased); None leaves it as it is."""
    if size is None or image.shape[:2] == (size, size):
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized = np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))
    return resized[..., None] if resized.ndim == 2 else resized


def stack(images: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Images [H, W, 1 or 3] as one array [N, H, W, C]; grey ones become RGB if any image has colour.

    Raises:
      ValueError: sizes differ; two files are named with their sizes.
    """
    first = images[0].shape
    for image, name in zip(images, names, strict=True):
        if image.shape[:2] != first[:2]:
            raise ValueError(
                f"images differ in size: {names[0]} is {first[1]}x{first[0]} and {name} is "
                f"{image.shape[1]}x{image.shape[0]}; give a size that all are resized to"
            )
    channels = max(image.shape[2] for image in images)
    stacked = np.empty((len(images), *first[:2], channels), np.uint8)
    for position, image in enumerate(images):
        stacked[position] = image
    return stacked


def check_size(size: int | None) -> None:
    """Raises `ValueError` unless `size` is None or 1 … 4096."""
    if size is not None and not 1 <= size <= 4096:
        raise ValueError(f"size is {size}; it must be 1 … 4096 pixels")


def _eight_bits(image: Image.Image) -> Image.Image | None:
    """The image as 8 bit grey or RGB; None for types whose range is not known (32 bit integers and floats)."""
    if image.mode in ("I", "F"):
        return None
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB warns about transparency given as bytes
    return image.convert("L" if image.mode in _GREY else "RGB")


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].replace("<_io.BytesIO object at ", "<")
