"""Training of classifiers: one victim, or several as one program."""

from jaxpurify.train.classifier import Recipe as Recipe
from jaxpurify.train.classifier import train_classifier as train_classifier
from jaxpurify.train.population import train_population as train_population
from jaxpurify.train.state import TrainingDiverged as TrainingDiverged
