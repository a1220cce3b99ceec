"""Attacks: `attack(observe, *, shape, num_classes, num_steps, labels, <the paper's settings>) -> Attack`."""

from jaxleak.attacks.agic import agic
from jaxleak.attacks.copa import copa
from jaxleak.attacks.cpl import cpl
from jaxleak.attacks.dlg import dlg, dlg_adam, idlg
from jaxleak.attacks.geng import geng
from jaxleak.attacks.gradinversion import gradinversion
from jaxleak.attacks.inverting_gradients import inverting_gradients
from jaxleak.attacks.matching import gradient_matching
from jaxleak.attacks.rank_analysis import Rank, rank_analysis
from jaxleak.attacks.rgap import rgap

NAMES = {
    "dlg": dlg,
    "dlg_adam": dlg_adam,
    "idlg": idlg,
    "inverting_gradients": inverting_gradients,
    "agic": agic,
    "geng": geng,
    "cpl": cpl,
    "gradinversion": gradinversion,
    "rgap": rgap,
    "copa": copa,
}

__all__ = [
    "NAMES",
    "Rank",
    "agic",
    "copa",
    "cpl",
    "dlg",
    "dlg_adam",
    "geng",
    "gradient_matching",
    "gradinversion",
    "idlg",
    "inverting_gradients",
    "rank_analysis",
    "rgap",
]
