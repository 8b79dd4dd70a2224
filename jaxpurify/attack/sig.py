"""SIG: a sinusoidal or ramp signal over images of the target class, labels kept."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np

from jaxpurify.attack.budget import add_levels, to_levels
from jaxpurify.attack.choose import StoredLabels, check_dataset, check_target, choose, poison_count, positions
from jaxpurify.data.poison import AdditiveTrigger, Poison
from jaxpurify.random import named
from jaxpurify.types import StoredImages

SIGNALS = ("sine", "ramp")


def sig(
    images: StoredImages,
    labels: StoredLabels,
    key: Key[Array, ""],
    *,
    target: int,
    count: int | None = None,
    fraction: float | None = None,
    epsilon: float = 20 / 255,
    signal: str = "sine",
    frequency: float = 6.0,
    scale: float = 1.0,
    clean_label: bool = True,
) -> Poison:
    """The sinusoidal signal of arXiv:1902.11237: x <- clip(x + v), v(i, j) = epsilon sin(2π j frequency / W).

    j = 1 … W counts columns, so all rows and channels are equal. The ramp is v(i, j) = epsilon j / W.

    Args:
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels, integers [N].
      key: chooses the poisoned examples; consumed.
      target: the class that the trigger is to mean.
      count: how many examples are poisoned; or
      fraction: the share of all N examples that are.
      epsilon: amplitude in units of [0, 1]; holds in stored 8-bit images. Published: 20/255 in training, later
        code 40/255.
      signal: `"sine"` or `"ramp"`.
      frequency: periods of the sine over the width.
      scale: strength of the test-time trigger relative to `epsilon`; the paper also uses stronger ones.
      clean_label: True: images of the target class, labels kept. False: other images, labels changed.

    Raises:
      ValueError: unknown target or signal, `epsilon` outside of [1/255, 1], a frequency that is not positive or
        that is zero at every column, `scale` not positive, or more poisons than examples to put them on.

    Warning: published code starts at j = 0: its signal is ours, one column later.
    """
    check_dataset(images, labels)
    check_target(target, labels)
    if not scale > 0:
        raise ValueError(f"scale is {scale}; it must be above 0")
    number = poison_count(count, fraction, len(labels))
    change = to_levels(sig_signal(images.shape[1:], epsilon, signal=signal, frequency=frequency), epsilon)
    if not change.any():
        raise ValueError(f"frequency is {frequency}; on images {images.shape[2]} wide this signal is zero everywhere")
    candidates = positions((labels == target) == clean_label)
    what = f"images of class {target}" if clean_label else f"images of classes other than {target}"
    index = choose(named(key, "choice"), candidates, number, what=what)
    return Poison(
        images=add_levels(images[index], change),
        labels=np.full(number, target, np.int32),
        index=index,
        target=target,
        trigger=AdditiveTrigger(jnp.asarray(change, jnp.float32) / 255, scale),
        how={
            "attack": "sig",
            "labels_changed": not clean_label,
            "count": number,
            "norm": "linf",
            "epsilon": float(epsilon),
            "signal": signal,
            "frequency": float(frequency),
            "scale": float(scale),
        },
    )


def sig_signal(
    shape: tuple[int, ...], epsilon: float, *, signal: str = "sine", frequency: float = 6.0
) -> Float[np.ndarray, "height width channels"]:
    """The signal v [H, W, C] for images of `shape`, in units of [0, 1]."""
    height, width, channels = shape
    if signal not in SIGNALS:
        raise ValueError(f"signal is {signal!r}; known: {', '.join(SIGNALS)}")
    if not 0 < frequency < np.inf:
        raise ValueError(f"frequency is {frequency}; it must be a number above 0")
    column = np.arange(1, width + 1) / width
    row = epsilon * (np.sin(2 * np.pi * frequency * column) if signal == "sine" else column)
    return np.broadcast_to(row[None, :, None], (height, width, channels)).astype(np.float32)
