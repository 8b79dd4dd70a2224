"""PureGen's Table 3 (arXiv:2405.18627) at a size that two cores can compute: purifiers trained on nothing but poison.

    TFDS_DATA_DIR=../shared/tfds python -m experiments.puregen_table3

Every public image on which a generative model is trained carries the Narcissus trigger of its class, the very triggers
that poison the training sets. Both columns of a model are trained alike; epsilon 0 is the control without triggers.
Rows are appended to experiments/results/puregen_table3_cpu_small.jsonl; those present are skipped. Models are kept in
runs/grid/poisoned-public, and a killed training continues.

Receipt: 64 core-minutes for the victims (the sum of `seconds` over the rows) on an AMD EPYC (Zen 4) with two cores,
which other work shared, and 20 to 40 minutes of a core for each of the three models that are trained. Classes 0, 1 and
2, one victim each, mean ± standard error, success above the floor (16.9 ± 4.4), highest class, natural accuracy:
undefended 41.4 ± 7.8, 77.3, 72.5; energy of clean images 16.0 ± 4.9, 48.6, 71.0; of poisoned ones 9.5 ± 1.2, 36.4,
67.2; diffusion of clean images -8.3 ± 5.4, 11.2, 67.7; of poisoned ones -7.5 ± 4.9, 11.2, 68.1.
"""

import dataclasses
from pathlib import Path

import numpy as np
import tyro

from experiments.bundled_weights import CONFIGS, train
from experiments.grid import run_grid
from experiments.puregen_table1 import Config as Table1
from jaxpurify.attack.budget import apply_trigger
from jaxpurify.data.sources import load_source
from jaxpurify.evaluate.grid import kept_poison
from jaxpurify.evaluate.scenario import Scenario
from jaxpurify.records import locked
from jaxpurify.types import StoredImages

MODELS = Path("runs/grid/poisoned-public")
SPECS = {"ebm": "langevin(steps=150, weights='{path}')", "ddpm": "diffusion(timestep=75, steps=5, weights='{path}')"}
# Updates. The bundled energy took 8,000; the bundled diffusion model as many as here, so that it is its own control.
STEPS = {"ebm": 1500, "ddpm": 1500}
CONTROLS = {("ddpm", 0): "cifar10-ddpm"}


@dataclasses.dataclass(frozen=True)
class Config:
    """The table.

    Attributes:
      models: ebm, ddpm.
      epsilons: of the triggers in generative training, in 1/255; 0: clean images.
      seeds: target classes, one victim each.
      workers: processes, one a core.
      part: which of them this is; set by the first process.
    """

    models: tuple[str, ...] = ("ebm", "ddpm")
    epsilons: tuple[int, ...] = (0, 8)
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = 2
    part: int | None = None

    def scenarios(self, part: int, parts: int) -> list[Scenario]:
        """A part of the table; models that are missing are trained first, each by one process."""
        wanted = [(model, epsilon) for model in self.models for epsilon in self.epsilons]
        # The second process starts from the other end: waiting for a model that is being trained is lost time.
        paths = {each: trained(*each) for each in (wanted[::-1] if part else wanted)}
        defences = tuple(SPECS[model].format(path=paths[model, epsilon]) for model, epsilon in wanted)
        return [dataclasses.replace(table1(8), defences=("none", *defences), seeds=self.seeds[part::parts])]


def table1(epsilon: int) -> Scenario:
    """The undefended rows of Table 1 under cpu-small."""
    return Table1(protocol="cpu-small", defences=("none",), epsilon=epsilon).scenarios()[0]


def trained(model: str, epsilon: int) -> Path | str:
    """The weights of a model that saw public images with triggers of `epsilon` levels: a file or a bundled name."""
    if (model, epsilon) in CONTROLS:
        return CONTROLS[model, epsilon]
    name = f"{model}-{epsilon}"
    path = MODELS / f"{name}.safetensors"
    with locked(MODELS / f"{name}.lock"):  # the other process waits, and finds the model
        if not path.exists():
            config = CONFIGS[f"cifar10-{model}"]
            recipe = dataclasses.replace(config.recipe, steps=STEPS[model])
            config = dataclasses.replace(config, recipe=recipe)
            train(f"poisoned-{name}", config, public_images(epsilon), path, "python -m experiments.puregen_table3")
    return path


def public_images(epsilon: int) -> StoredImages:
    """The public images, each with the trigger of its class."""
    scenario = table1(epsilon or 8)
    public = load_source(scenario.protocol.public)
    if epsilon == 0:
        return public.images
    images = np.empty_like(public.images)
    with locked(MODELS / "triggers.lock"):  # two processes must not craft the same poison
        poisons = [kept_poison("runs/grid", scenario, scenario.attacks[0], label) for label in range(10)]
    for label, poison in enumerate(poisons):
        members = public.labels == label
        images[members] = apply_trigger(poison.trigger, public.images[members], epsilon / 255)
    return images


def main() -> None:
    """Runs the table with one process a core, or one part of it in this process."""
    run_grid("experiments.puregen_table3", tyro.cli(Config), "puregen_table3_cpu_small")


if __name__ == "__main__":
    main()
