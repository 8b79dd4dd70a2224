"""Which training examples to keep."""

from jaxpurify.select.epic import Selection as Selection
from jaxpurify.select.epic import epic as epic
from jaxpurify.select.epic import last_layer_gradient as last_layer_gradient
