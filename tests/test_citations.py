"""BibTeX of whatever has a name."""

import re

import pytest

import jaxleak as jl
from jaxleak import citations

NAMES = {"attack": jl.attacks.NAMES, "defense": jl.defenses.NAMES, "labels": jl.labels.NAMES}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in NAMES.items() for name in table])
def test_every_name_says_whose_work_it_is(kind, name):
    found = jl.cite(name)
    assert found == jl.cite(NAMES[kind][name]) or NAMES[kind][name].__name__ != name
    assert (found == "") == (name == "known")


def test_an_attack_cites_what_it_is_and_each_paper_once():
    observe = jl.observe.gradient(jl.cross_entropy(lambda params, x: x))
    attack = jl.attacks.idlg(observe, shape=(1, 2, 2, 1), num_classes=2, num_steps=1)
    assert citations.keys([attack, jl.labels.idlg, "prune", "quantize"]) == [
        "zhao2020idlg",
        "lin2018deep",
        "ovi2023comprehensive",
        "ovi2022mixed",
    ]
    assert jl.cite() == ""


@pytest.mark.parametrize("key", list(citations.entries()))
def test_entries_are_whole(key):
    entry = citations.entries()[key]
    assert re.fullmatch(r"@(article|inproceedings|unpublished)\{" + key + r",\n(  \w+ += \{.*\},?\n)+\}", entry)
    assert entry.count("{") == entry.count("}")
    for field in ("title", "author"):
        assert re.search(rf"^  {field} +=", entry, re.M)
    year = re.search(r"year +=.*\{(\d{4})\}", entry)
    assert entry.startswith("@unpublished") or year[1] in key
    assert key.startswith(re.search(r"author +=.*?\{(\w+),", entry)[1].lower())


def test_no_entry_is_left_over():
    used = {key for keys in citations._OF.values() for key in keys}
    assert used == set(citations.entries())


@pytest.mark.parametrize("used", ["idlgg", 3])
def test_what_has_no_name_is_refused(used):
    with pytest.raises(ValueError, match="idlg|expected"):
        jl.cite(used)
