"""Attacks: `attack(observe, *, shape, num_classes, num_steps, labels, <the paper's settings>) -> Attack`."""

from jaxleak.attacks.agic import agic
from jaxleak.attacks.cinet import cinet, deep_image_prior
from jaxleak.attacks.copa import copa
from jaxleak.attacks.cpl import cpl
from jaxleak.attacks.dlg import dlg, dlg_adam, idlg
from jaxleak.attacks.engines import GRADIENT_FREE
from jaxleak.attacks.geng import geng
from jaxleak.attacks.ggl import ggl
from jaxleak.attacks.gias import gias
from jaxleak.attacks.giml import MetaLearning, MetaState, giml
from jaxleak.attacks.gradinversion import gradinversion
from jaxleak.attacks.igims import igims
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
    "gias": gias,
    "ggl": ggl,
    "igims": igims,
    "cinet": cinet,
    "deep_image_prior": deep_image_prior,
}

__all__ = [
    "GRADIENT_FREE",
    "NAMES",
    "MetaLearning",
    "MetaState",
    "Rank",
    "agic",
    "cinet",
    "copa",
    "cpl",
    "deep_image_prior",
    "dlg",
    "dlg_adam",
    "geng",
    "ggl",
    "gias",
    "giml",
    "gradient_matching",
    "gradinversion",
    "idlg",
    "igims",
    "inverting_gradients",
    "rank_analysis",
    "rgap",
]
