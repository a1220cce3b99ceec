import json
import os
import re

import numpy as np
import pytest

from jaxleak.experiments import folder

ROW = {
    "attack": "dlg",
    "defense": "none",
    "model": "lenet",
    "dataset": "photos",
    "image": 3,
    "seed": 0,
    "num_steps": 80,
    "mse": 0.01,
    "psnr": 20.0,
    "ssim": None,
    "label_correct": True,
    "loss": 0.5,
    "status": "finished",
    "seconds": 1.5,
}


def test_rows_come_back(tmp_path):
    rows = [ROW, {**ROW, "seed": 1, "psnr": float("nan"), "loss": float("inf"), "status": "diverged"}]
    folder.write_results(tmp_path, rows)
    expected = [ROW, {**rows[1], "psnr": None, "loss": None}]
    assert folder.read_results(tmp_path / folder.RESULTS) == expected
    assert list(expected[0]) == list(folder.ROW)


def test_appended_rows_are_whole_or_not_there(tmp_path, monkeypatch):
    folder.append_results(tmp_path, [ROW])
    folder.append_results(tmp_path, [{**ROW, "seed": 1}, {**ROW, "seed": 2}])
    path = tmp_path / folder.RESULTS
    before = path.read_bytes()
    assert [row["seed"] for row in folder.read_results(path)] == [0, 1, 2]

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        folder.append_results(tmp_path, [ROW])
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("tail", [json.dumps(ROW)[:40], "\n", '{"step": 1}\n' + json.dumps(ROW) + "\n"])
def test_whole_rows_end_at_the_first_that_is_not(tail, tmp_path):
    path = tmp_path / folder.RESULTS
    assert folder.whole_results(path) == []
    folder.write_results(tmp_path, [ROW, ROW])
    path.write_text(path.read_text() + tail)
    assert folder.whole_results(path) == [ROW, ROW]


FOREIGN = {
    "torn": (json.dumps(ROW)[:40], "not a whole line of JSON"),
    "no JSON": ("hello", "not a whole line of JSON"),
    "no text": (b"\xff\xfe", "not a whole line of JSON"),
    "no number": (json.dumps({**ROW, "loss": float("nan")}), "NaN is no number of JSON"),
    "list": ("[1]", "not a row of a run: has list"),
    "other keys": ('{"step": 1}', "not a row of a run: has step"),
    "a key more": (json.dumps({**ROW, "more": 1}), "not a row of a run: has attack"),
    "other type": (json.dumps({**ROW, "psnr": "20"}), "psnr='20': expected int or float or NoneType"),
    "truth for a number": (json.dumps({**ROW, "seed": True}), "seed=True: expected int"),
    "status": (json.dumps({**ROW, "status": "fine"}), "status='fine': expected one of finished, converged"),
    "deep": ("[" * 100_000, "not a whole line of JSON"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_torn_or_foreign_line_is_named(case, tmp_path):
    line, message = FOREIGN[case]
    path = tmp_path / folder.RESULTS
    line = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(json.dumps(ROW).encode() + b"\n\n" + line)
    with pytest.raises(ValueError, match=re.escape(f"{path}:3: ") + ".*" + re.escape(message)):
        folder.read_results(path)


def test_arrays_need_no_pickle(tmp_path):
    folder.write_arrays(tmp_path, {"x": np.ones((2, 3), np.float32)})
    with np.load(tmp_path / folder.ARRAYS, allow_pickle=False) as arrays:
        assert arrays["x"].shape == (2, 3)
    with pytest.raises(ValueError, match="allow_pickle"):
        folder.write_arrays(tmp_path, {"x": np.array([object()])})
    assert os.listdir(tmp_path) == [folder.ARRAYS]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_file_is_whole_or_not_there(function, error, tmp_path, monkeypatch):
    path = tmp_path / "file"
    folder.write(path, b"before")

    def fail(*args):
        raise error

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(type(error)) as caught:
        folder.write(path, b"after")
    assert isinstance(error, KeyboardInterrupt) or caught.value.filename == str(path)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"before"


def test_folders_of_the_same_second_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [folder.claim(None, "attack") for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(made.is_dir() and made.parent.name == "runs" for made in folders)


def test_folder_with_other_files_is_taken_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert folder.claim(tmp_path, "attack") == tmp_path
    assert os.listdir(tmp_path) == ["notes.txt"]
    (tmp_path / folder.ARRAYS).write_text("")
    with pytest.raises(ValueError, match=r"already holds a run \(arrays.npz\)"):
        folder.claim(tmp_path, "attack")


def test_unfinished_run_may_go_on_and_a_complete_one_may_not(tmp_path):
    for name in (folder.CONFIG, folder.RESULTS):
        (tmp_path / name).write_text("")
        assert folder.claim(tmp_path, "attack") == tmp_path
    # Ctrl-C leaves all files, and a checkpoint.
    for name in (*folder.FILES, folder.CHECKPOINT):
        (tmp_path / name).write_text("")
    assert folder.claim(tmp_path, "attack") == tmp_path
    (tmp_path / folder.CHECKPOINT).unlink()
    with pytest.raises(ValueError, match="already holds a run"):
        folder.claim(tmp_path, "attack")


def test_run_of_other_settings_is_refused_by_the_first_that_differs(tmp_path):
    folder.write_config(tmp_path, {"config": {"seeds": 2, "images": 4, "out": "here"}})
    folder.refuse_other(tmp_path, {"seeds": 2, "images": 4, "out": "there"}, free=("out",))
    with pytest.raises(
        ValueError, match=r"^images=8: out='.*' holds an unfinished run with images=4: expected the same"
    ):
        folder.refuse_other(tmp_path, {"seeds": 2, "images": 8, "out": "here"}, free=("out",))
    with pytest.raises(ValueError, match="^model=mlp: .* with model=None"):
        folder.refuse_other(tmp_path, {"seeds": 2, "model": "mlp"}, free=())


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"config": 3}', "[" * 100_000])
def test_foreign_config_is_named(content, tmp_path):
    (tmp_path / folder.CONFIG).write_text(content)
    with pytest.raises(ValueError, match=f"{folder.CONFIG}: not the config.json of a run"):
        folder.refuse_other(tmp_path, {"seeds": 2}, free=())


def test_folder_is_discarded_only_if_empty(tmp_path):
    made = folder.claim(tmp_path / "run", "attack")
    (made / "file").write_text("")
    folder.discard_if_empty(made)
    assert made.exists()
    (made / "file").unlink()
    (made / folder.CONFIG).write_text("")
    folder.discard_if_empty(made)
    assert not made.exists()


def test_provenance_is_json():
    found = folder.provenance()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"date", "versions", "device", "commit"}
    assert found["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found["commit"])
