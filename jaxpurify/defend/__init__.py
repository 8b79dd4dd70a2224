"""Defences that change training itself."""

from jaxpurify.defend.friendly_noise import FriendlyNoise as FriendlyNoise
from jaxpurify.defend.friendly_noise import RandomNoise as RandomNoise
from jaxpurify.defend.projected_gradient import ProjectedGradient as ProjectedGradient
