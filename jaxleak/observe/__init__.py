"""What a server sees of a client: gradients, updates of local training, several rounds; defended or not."""

from jaxleak.observe.adapted import Adaptation, adapted
from jaxleak.observe.defended import defended
from jaxleak.observe.fedavg import averaged, local_sgd, one_batch
from jaxleak.observe.gradients import PRECISIONS, gradient
from jaxleak.observe.observation import Observe, Round, as_observe
from jaxleak.observe.several_rounds import rounds

__all__ = [
    "PRECISIONS",
    "Adaptation",
    "Observe",
    "Round",
    "adapted",
    "as_observe",
    "averaged",
    "defended",
    "gradient",
    "local_sgd",
    "one_batch",
    "rounds",
]
