"""Training of the generative models that purifiers use."""

from jaxpurify.generate.diffusion import DiffusionRecipe as DiffusionRecipe
from jaxpurify.generate.diffusion import train_diffusion as train_diffusion
from jaxpurify.generate.energy import EnergyRecipe as EnergyRecipe
from jaxpurify.generate.energy import train_energy as train_energy
from jaxpurify.generate.energy_recipe import HILL as HILL
from jaxpurify.generate.energy_recipe import PUREGEN as PUREGEN
