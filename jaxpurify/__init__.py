"""Clean image training sets of data poisoning before training, and measure how far that works.

Packages: `data`, `networks`, `purify`, `attack`, `select`, `train`, `generate`, `defend`, `evaluate`. The names that
every program needs are here as well. Both are imported when first used, so that the command line can answer at once.
"""

import importlib

_PACKAGES = ("attack", "data", "defend", "evaluate", "generate", "networks", "purify", "select", "train")
_NAMES = {
    "Dataset": "jaxpurify.data.dataset",
    "Poison": "jaxpurify.data.poison",
    "load": "jaxpurify.weights.catalogue",
    "load_source": "jaxpurify.data.sources",
    "poison_dataset": "jaxpurify.data.poison",
    "save_dataset": "jaxpurify.data.sources",
    "triggered_test_set": "jaxpurify.data.poison",
}
__all__ = (*_PACKAGES, *_NAMES)


def __getattr__(name: str):
    if name in _PACKAGES:
        return importlib.import_module(f"jaxpurify.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"jaxpurify has no {name!r}; it has {', '.join(sorted(__all__))}")


def __dir__():
    return sorted(__all__)
