"""Grids that have a name, so that a table can be made again with one short command."""

import dataclasses

from jaxpurify.evaluate.protocol import protocol
from jaxpurify.evaluate.scenario import Scenario


@dataclasses.dataclass(frozen=True)
class Preset:
    """The settings of a `Scenario`, with the protocol by name.

    Attributes:
      protocol: name of the protocol.
      attacks, defences, seeds, trigger_scale: as in `Scenario`.
    """

    protocol: str
    attacks: tuple[str, ...]
    defences: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    trigger_scale: float = 1.0

    def scenario(self) -> Scenario:
        """The grid that these settings describe.

        Raises:
          ValueError: unknown protocol or attack.
        """
        return Scenario(protocol(self.protocol), self.attacks, self.defences, self.seeds, self.trigger_scale)


def _published(public: str) -> tuple[str, ...]:
    """The defences of a published table, by models of the public images that its protocol names.

    The bundled models have seen images of CIFAR-10, which are victims' own there: these lie in the current folder, made
    by `jaxpurify generate` or from published weights.
    """
    ebm, ddpm = f"weights='ebm-{public}.safetensors'", f"weights='ddpm-{public}.safetensors'"
    return f"langevin(steps=150, {ebm})", f"diffusion(timestep=75, {ddpm})"


PRESETS: dict[str, Preset] = {
    "demo": Preset(
        "demo",
        ("pattern(epsilon=0.15, fraction=0.06)", "class_noise(epsilon=0.35, kind='sign')"),
        ("jpeg(quality=50)", "digits-ebm", "digits-ddpm", "digits-both"),
        (1, 2, 3),  # settings were chosen on seeds from 100 on
    ),
    "cpu-narcissus": Preset(
        "cpu",
        ("narcissus(epsilon=16/255, count=500)",),
        ("jpeg(quality=50)", "puregen-ebm", "diffusion(timestep=75, steps=15)"),
    ),
    # Narcissus in PureGen's Table 1 (arXiv:2405.18627), for accelerators; its other columns go by options
    # (`--attack`, `--defence`, `--seeds`). It crafts for 1,000 passes over its target class.
    "paper": Preset(
        "paper",
        ("narcissus(epsilon=8/255, count=500, steps=14286, batch_size=350, learning_rate=0.005, choice='last')",),
        _published("cinic10-imagenet"),
        tuple(range(10)),
    ),
    "paper-cinic10": Preset(
        "paper-cinic10",
        ("narcissus(epsilon=8/255, count=900, steps=25715, batch_size=350, learning_rate=0.005, choice='random')",),
        _published("cifar10"),
        tuple(range(10)),
    ),
    "paper-tiny-imagenet": Preset(
        "paper-tiny-imagenet",
        ("gradient_matching(epsilon=8/255, count=250)",),
        _published("caltech256"),
        tuple(range(100)),
    ),
}


def named_preset(name: str) -> Preset:
    """The preset called `name`; ValueError lists the known names."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]


def preset(name: str, *, seeds: tuple[int, ...] | None = None) -> Scenario:
    """The grid of the preset called `name`, with other `seeds` where they are given.

    Raises:
      ValueError: unknown name; the known ones are listed.
    """
    found = named_preset(name)
    return (found if seeds is None else dataclasses.replace(found, seeds=seeds)).scenario()
