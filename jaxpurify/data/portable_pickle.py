"""Pickles for code of any age: written so that NumPy 1 and NumPy 2 both find their own names in them."""

import pickle
import pickletools
from typing import Any

_PROTOCOL = 3  # the last one without frames, whose lengths would have to change with the names


def dump_pickle(content: Any) -> bytes:
    """The pickle of `content`, in which NumPy's modules have the names of NumPy 1, which NumPy 2 knows too.

    NumPy 2 itself writes `numpy._core.multiarray`; the code for which these files are made runs on older versions.
    """
    written, parts, end = pickle.dumps(content, _PROTOCOL), [], 0
    for opcode, argument, position in pickletools.genops(written):
        if opcode.name == "GLOBAL" and position is not None and str(argument).startswith("numpy._core."):
            module, name = str(argument).split(" ")
            parts += [written[end:position], f"c{module.replace('_core', 'core', 1)}\n{name}\n".encode()]
            end = position + len(f"c{module}\n{name}\n")
    return b"".join([*parts, written[end:]])
