"""Purifiers, and the call that takes a data set through one: `jaxpurify.purify(purifier, images, key=key)`."""

import sys
import types

from jaxpurify.purify.adaptive import Adaptive as Adaptive
from jaxpurify.purify.combine import Average as Average
from jaxpurify.purify.combine import Chain as Chain
from jaxpurify.purify.combine import Identity as Identity
from jaxpurify.purify.combine import Repeat as Repeat
from jaxpurify.purify.combine import chain as chain
from jaxpurify.purify.combine import repeat as repeat
from jaxpurify.purify.compat_filter import compat_filt as compat_filt
from jaxpurify.purify.dataset import purify as purify
from jaxpurify.purify.diffusion import Diffusion as Diffusion
from jaxpurify.purify.filter import TopEnergy as TopEnergy
from jaxpurify.purify.filter import top_energy as top_energy
from jaxpurify.purify.jpeg import Jpeg as Jpeg
from jaxpurify.purify.langevin import Langevin as Langevin
from jaxpurify.purify.schedule import Schedule as Schedule
from jaxpurify.purify.truncate import Truncate as Truncate


class _CallablePackage(types.ModuleType):
    """`jaxpurify.purify` is what a user calls and where the purifiers live; Python gives both one name."""

    __call__ = staticmethod(purify)


sys.modules[__name__].__class__ = _CallablePackage
