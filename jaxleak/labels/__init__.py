"""Labels from an update. All are `labels(observe, leak, *, shape, num_classes) -> int [n]`.

`recover` gives them with a confidence. Methods that count (`alr`, `geng`, `ilrg`) are for models that are not trained:
of a trained one, dL/db says little of labels that are predicted right, and none of them is reliably better than dealing
the labels evenly over the classes (`experiments/studies/igims_table_2.py`).

Of several rounds, the first that holds every example once is read.
"""

from jaxleak.labels.alr import alr
from jaxleak.labels.geng import geng
from jaxleak.labels.given import joint, known
from jaxleak.labels.ilrg import ilrg
from jaxleak.labels.recovered import Recovered
from jaxleak.labels.recovery import NAMES, recover
from jaxleak.labels.signs import idlg, inferred, row_norm, zlr

__all__ = [
    "NAMES",
    "Recovered",
    "alr",
    "geng",
    "idlg",
    "ilrg",
    "inferred",
    "joint",
    "known",
    "recover",
    "row_norm",
    "zlr",
]
