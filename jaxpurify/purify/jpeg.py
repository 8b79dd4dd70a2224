"""JPEG compression as a purifier: the cheap baseline that every table needs."""

import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxpurify.struct import is_count, static, struct
from jaxpurify.types import Images, Keys


@struct
class Jpeg:
    """Encodes as JPEG and decodes again, with Pillow and on the host; no key is used.

    Images are clipped and rounded to 8 bit first, so the result equals Pillow's on the stored images. An image with NaN
    or infinite values, which JPEG cannot hold, stays as it is.

    Attributes:
      quality: 1 … 95; published tables use 25, 50, 75 and 85.

    Raises:
      ValueError: `quality` outside of 1 … 95, or images with other than 1 or 3 channels.
    """

    quality: int = static(default=50)

    def __post_init__(self):
        if not is_count(self.quality, 1, 95):
            raise ValueError(f"quality={self.quality!r}; JPEG accepts whole numbers from 1 to 95")

    def __call__(self, keys: Keys, images: Images) -> Images:
        if images.shape[-1] not in (1, 3):
            raise ValueError(f"JPEG needs 1 or 3 channels, the images have {images.shape[-1]}")
        if isinstance(images, jax.core.Tracer):
            shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
            return jax.pure_callback(self._on_host, shape, images, vmap_method="expand_dims")
        return jax.device_put(self._on_host(images), jnp.asarray(images).sharding)

    def _on_host(self, images) -> np.ndarray:
        images = np.asarray(images)
        finite = np.isfinite(images).all((-3, -2, -1), keepdims=True)
        stored = np.clip(np.round(np.where(finite, images, 0) * 255), 0, 255).astype(np.uint8)
        recoded = np.stack([self._recode(image) for image in stored.reshape(-1, *images.shape[-3:])])
        return np.where(finite, recoded.astype(np.float32).reshape(images.shape) / 255, images)

    def _recode(self, image: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        picture.save(buffer, format="JPEG", quality=self.quality)
        return np.asarray(Image.open(buffer)).reshape(image.shape)
