import pytest

from jaxleak import names


def test_lookup_returns_the_thing():
    assert names.lookup("attack", "dlg", {"dlg": 1, "idlg": 2}) == 1


def test_lookup_names_what_is_known_nearest_first():
    table = dict.fromkeys(["agic", "copa", "idlg", "dlg"])
    with pytest.raises(ValueError, match=r"^unknown attack 'dgl': known are dlg, idlg, agic, copa$"):
        names.lookup("attack", "dgl", table)


def test_lookup_returns_a_stored_none():
    assert names.lookup("defense", "none", {"none": None}) is None


def test_equally_near_names_are_alphabetical():
    assert names.nearest("zzz", ["b", "c", "a"]) == ["a", "b", "c"]


def test_case_does_not_count():
    assert names.nearest("DLG", ["agic", "dlg"]) == ["dlg", "agic"]


def test_nothing_known():
    assert names.nearest("dlg", []) == []
