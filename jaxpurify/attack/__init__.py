"""Attacks: each a function that returns a `Poison`; only `poison_dataset` writes it into training data."""

from jaxpurify.attack.badnets import badnets as badnets
from jaxpurify.attack.badnets import patch_trigger as patch_trigger
from jaxpurify.attack.catalogue import ATTACKS as ATTACKS
from jaxpurify.attack.catalogue import Attack as Attack
from jaxpurify.attack.class_noise import class_noise as class_noise
from jaxpurify.attack.linear_noise import linear_noise as linear_noise
from jaxpurify.attack.narcissus import narcissus as narcissus
from jaxpurify.attack.pattern import pattern as pattern
