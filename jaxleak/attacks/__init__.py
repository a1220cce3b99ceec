"""Attacks: `attack(observe, *, shape, num_classes, num_steps, labels, <the paper's settings>) -> Attack`."""

from jaxleak.attacks.agic import agic
from jaxleak.attacks.cpl import cpl
from jaxleak.attacks.dlg import dlg, dlg_adam, idlg
from jaxleak.attacks.geng import geng
from jaxleak.attacks.gradinversion import gradinversion
from jaxleak.attacks.inverting_gradients import inverting_gradients
from jaxleak.attacks.matching import gradient_matching

NAMES = {
    "dlg": dlg,
    "dlg_adam": dlg_adam,
    "idlg": idlg,
    "inverting_gradients": inverting_gradients,
    "agic": agic,
    "geng": geng,
    "cpl": cpl,
    "gradinversion": gradinversion,
}

__all__ = [
    "NAMES",
    "agic",
    "cpl",
    "dlg",
    "dlg_adam",
    "geng",
    "gradient_matching",
    "gradinversion",
    "idlg",
    "inverting_gradients",
]
