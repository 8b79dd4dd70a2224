"""What victims do, in numbers; scenarios, tables and reports are in the modules of this package."""

from jaxpurify.evaluate.crossing import crossing as crossing
from jaxpurify.evaluate.effect import effect as effect
from jaxpurify.evaluate.metrics import natural_accuracy as natural_accuracy
from jaxpurify.evaluate.metrics import poison_success as poison_success
from jaxpurify.evaluate.metrics import predict as predict
from jaxpurify.evaluate.statistics import auroc as auroc
from jaxpurify.evaluate.statistics import perturbation_survival as perturbation_survival
from jaxpurify.evaluate.statistics import psnr as psnr
from jaxpurify.evaluate.statistics import wilson_interval as wilson_interval
