"""Federated learning: who holds which examples, how clients train, and what the server adds up."""

from jaxleak.fl import partition, secure_sum
from jaxleak.fl.clients import Client, Population, population
from jaxleak.fl.evaluation import evaluation
from jaxleak.fl.rounds import SCHEDULES, Rounds, fedavg, fedsgd
from jaxleak.fl.server import SCHEMES, Sent, State
from jaxleak.fl.training import Interrupted, Recorded, Trained, train

__all__ = [
    "SCHEDULES",
    "SCHEMES",
    "Client",
    "Interrupted",
    "Population",
    "Recorded",
    "Rounds",
    "Sent",
    "State",
    "Trained",
    "evaluation",
    "fedavg",
    "fedsgd",
    "partition",
    "population",
    "secure_sum",
    "train",
]
