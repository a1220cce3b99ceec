"""Whose work a call used, as BibTeX."""

import functools
import importlib.resources
import re
from collections.abc import Callable, Iterable, Mapping

from jaxleak.base import Attack
from jaxleak.names import lookup

# Of each method, its papers: the one that it is from, and those of what it is made of. A name that attacks and label
# recoveries share stands for one paper.
_OF: Mapping[str, tuple[str, ...]] = {
    # attacks
    "dlg": ("zhu2019deep",),
    "dlg_adam": ("zhu2019deep",),
    "idlg": ("zhao2020idlg",),
    "inverting_gradients": ("geiping2020inverting",),
    "agic": ("xu2022agic",),
    "geng": ("geng2021towards",),
    "cpl": ("wei2020framework",),
    "gradinversion": ("yin2021see", "yin2020dreaming", "kuglin1975phase"),
    "rgap": ("zhu2021rgap",),
    "copa": ("chen2021understanding",),
    "gias": ("jeon2021gradient",),
    "ggl": ("li2022ggl", "hansen2016cma", "lange2022evosax"),
    "igims": ("fang2024iterative", "hansen2016cma", "lange2022evosax"),
    "cinet": ("zhang2023generative",),
    "deep_image_prior": ("ulyanov2018deep",),
    # defenses
    "gaussian_noise": ("ovi2023comprehensive",),
    "laplacian_noise": ("ovi2023comprehensive",),
    "clip": ("abadi2016deep", "wan2023enhancing"),
    "dp_sgd": ("abadi2016deep",),
    "prune": ("lin2018deep", "ovi2023comprehensive"),
    "quantize": ("ovi2022mixed", "ovi2023comprehensive"),
    "soteria": ("sun2021soteria",),
    "learning_rate_perturbation": ("wan2023enhancing",),
    "adaptive_learning_rate_perturbation": ("wan2023enhancing",),
    "gradient_dropout": ("sotthiwat_safeguarding",),
    "none": (),
    # labels
    "inferred": ("zhao2020idlg", "yin2021see"),
    "known": (),
    "joint": ("zhu2019deep",),
    "zlr": ("yin2021see",),
    "alr": ("fang2024iterative",),
    "row_norm": ("zhu2021rgap",),
    "ilrg": ("ma2023instance",),
    # federated learning
    "fedavg": ("mcmahan2017communication",),
    "fedsgd": ("mcmahan2017communication",),
    "secure_sum": ("bonawitz2017practical",),
    # metrics and training
    "lpips": ("zhang2018unreasonable",),
    "mse_r": ("li2022ggl",),
    "giml": ("jeon2021gradient",),
}


def cite(*used: Attack | Callable | str) -> str:
    """The BibTeX of what was used.

    Args:
      *used: attacks, functions of `jaxleak.attacks`, `jaxleak.defenses` and `jaxleak.labels`, or their names; and
        "fedavg", "fedsgd", "secure_sum", "lpips", "mse_r" and "giml".

    Returns:
      Entries in the order of their first use, each once; empty where nothing has a paper.

    Raises:
      ValueError: a name is unknown.

    Example:
      >>> import jaxleak as jl
      >>> print(jl.cite("idlg", jl.defenses.prune).splitlines()[0])
      @article{zhao2020idlg,
    """
    return "\n\n".join(entries()[key] for key in keys(used))


def keys(used: Iterable[Attack | Callable | str]) -> list[str]:
    """The BibTeX keys of what was used; see `cite`."""
    names = [_name(one) for one in used]
    return list(dict.fromkeys(key for name in names for key in lookup("method", name, _OF)))


def _name(one: Attack | Callable | str) -> str:
    if isinstance(one, str):
        return one
    name = one.name if isinstance(one, Attack) else getattr(one, "__name__", None)
    if not isinstance(name, str):
        raise ValueError(f"{one!r}: expected an attack, a function of jaxleak, or a name")
    return name


@functools.cache
def entries() -> dict[str, str]:
    """All entries by key."""
    text = importlib.resources.files("jaxleak").joinpath("references.bib").read_text("utf-8")
    found = [entry.strip() for entry in re.split(r"(?m)^(?=@)", text) if entry.strip()]
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in found}
