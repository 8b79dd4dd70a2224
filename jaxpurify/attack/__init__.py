"""Attacks: each a function that returns a `Poison`; only `poison_dataset` writes it into training data."""

from jaxpurify.attack.badnets import badnets as badnets
from jaxpurify.attack.badnets import patch_trigger as patch_trigger
from jaxpurify.attack.blended import blended as blended
from jaxpurify.attack.bullseye import bullseye as bullseye
from jaxpurify.attack.catalogue import ATTACKS as ATTACKS
from jaxpurify.attack.catalogue import Attack as Attack
from jaxpurify.attack.class_noise import class_noise as class_noise
from jaxpurify.attack.clean_label_backdoor import clean_label_backdoor as clean_label_backdoor
from jaxpurify.attack.convex_polytope import convex_polytope as convex_polytope
from jaxpurify.attack.gradient_matching import gradient_matching as gradient_matching
from jaxpurify.attack.hidden_trigger import hidden_trigger as hidden_trigger
from jaxpurify.attack.linear_noise import linear_noise as linear_noise
from jaxpurify.attack.metapoison import metapoison as metapoison
from jaxpurify.attack.narcissus import narcissus as narcissus
from jaxpurify.attack.pattern import pattern as pattern
from jaxpurify.attack.poison_frogs import poison_frogs as poison_frogs
from jaxpurify.attack.random_noise import random_noise as random_noise
from jaxpurify.attack.sig import sig as sig
from jaxpurify.attack.sleeper_agent import sleeper_agent as sleeper_agent
from jaxpurify.attack.wanet import wanet as wanet
from jaxpurify.attack.watermark import watermark as watermark
