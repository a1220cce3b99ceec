import importlib.util
import json
import re

import jax
import numpy as np
import pytest

from jaxleak import memory
from jaxleak.benchmarks import bench, plot, quality, rows
from jaxleak.experiments import cli

NO_TORCH = "torch is not installed: pip install 'jaxleak[bench]'"
HAS_TORCH = importlib.util.find_spec("torch") is not None


def run(out, *arguments):
    return cli.main(["bench", "--quick", "--seconds", "0.002", *arguments, "--out", str(out)])


def read(out):
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setattr(rows, "why_no_torch", lambda: NO_TORCH)
    monkeypatch.setattr(quality, "why_no_torch", lambda: NO_TORCH)


def test_without_torch_its_columns_are_null_and_it_says_so(no_torch, tmp_path, capsys):
    cache = jax.config.jax_enable_compilation_cache
    out = tmp_path / "new" / "rows.jsonl"
    assert run(out, "--lanes", "2", "1") == 0
    printed = capsys.readouterr()
    assert printed.err == f"jaxleak: {NO_TORCH}; the columns of PyTorch are null\n"
    assert re.search(r"lenet\s+1\s+2\s+[\d.]+\s+-\s+-", printed.out)
    assert jax.config.jax_enable_compilation_cache == cache
    first, second = read(out)
    assert (first["lanes"], second["lanes"]) == (1, 2)
    for row in (first, second):
        assert row["pytorch"] is None
        assert row["times_as_fast_as_pytorch"] is None
        assert row["problems"] == {"pytorch": NO_TORCH}
        assert row["jaxleak"]["compile_seconds"] > 0
        assert {"date", "versions", "device", "commit"} <= set(row)
        low, high = row["jaxleak"]["ms_a_lane_step"]["quartiles"]
        assert 0 < low <= row["jaxleak"]["ms_a_lane_step"]["median"] <= high
        share = row["gflop_a_lane_step"] / row["jaxleak"]["ms_a_lane_step"]["median"] * 1e3
        share /= max(row["ceiling_gflops"].values())
        np.testing.assert_allclose(row["share_of_ceiling"]["median"], share, rtol=0.01)
        estimate = 4 * row["parameter_bytes"] + 6 * row["activation_bytes"]
        np.testing.assert_allclose(row["bytes_to_estimate"], row["bytes_a_lane"] / estimate, rtol=1e-3)
    assert second["ratio_to_single"]["median"] > 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["rows.jsonl", "rows.png"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
def test_a_form_that_fails_and_memory_that_does_not_suffice_end_nothing(tmp_path, capsys, monkeypatch):
    from jaxleak.benchmarks import reference

    def refused(self, latent):
        raise NotImplementedError("no second derivative\nof this")

    monkeypatch.setattr(reference.Problem, "by_transform", refused)
    real = memory.available
    # Enough for two lanes of PyTorch, and once for jaxleak's one.
    answers = iter([10**9, 10**9, 10**3, 10**9])
    monkeypatch.setattr(memory, "available", lambda devices: next(answers, real(devices)))
    assert run(tmp_path / "rows.jsonl", "--lanes", "1", "2") == 0
    first, second = read(tmp_path / "rows.jsonl")
    assert first["times_as_fast_as_pytorch"]["median"] > 0
    assert "torch.func.vmap" not in first["pytorch"]["trials"]
    assert second["jaxleak"] is None
    assert second["ratio_to_single"] is None
    assert second["problems"]["jaxleak"].startswith("MemoryError: needs ")
    assert "lenet, batch size 1, 2 lanes: jaxleak: MemoryError" in capsys.readouterr().err
    trials = second["pytorch"]["trials"]
    assert trials["torch.func.vmap, 1 thread"] == "NotImplementedError: no second derivative"
    assert second["pytorch"]["variant"] in trials
    assert second["pytorch"]["variant"].startswith("autograd")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--models", "lenett", "unknown model 'lenett'"),
        ("--lanes", "0", "lanes=0: expected >= 1"),
        ("--repeats", "4", "repeats=4: expected >= 5"),
        ("--quality", "dlg", "unknown quality 'dlg'"),
        ("--devices", "99", "devices=99: expected at most"),
        ("--seconds", "0", "seconds=0.0: expected > 0"),
    ],
)
def test_refuses_in_one_line(flag, value, message, tmp_path, capsys):
    assert run(tmp_path / "rows.jsonl", flag, value) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_rows_are_not_overwritten(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    out.write_text("kept")
    assert run(out) == 2
    assert "expected a new file" in capsys.readouterr().err
    assert out.read_text() == "kept"


def test_quality_of_a_goal_that_is_reached_and_of_one_that_is_not(monkeypatch):
    monkeypatch.setattr(quality, "LANES", 2)
    sides = ["jaxleak", "pytorch"] if HAS_TORCH else ["jaxleak"]
    easy = quality.row("inverting_gradients", quality.Goal(psnr=1.0, num_steps=4, stride=2))
    for side in sides:
        assert easy[side]["num_steps"] == 2
        assert easy[side]["psnr"] >= 1
        assert easy[side]["seconds"] > 0
    assert easy["jaxleak"]["seconds"] > easy["jaxleak"]["seconds_without_compiling"]
    hard = quality.row("inverting_gradients", quality.Goal(psnr=99.0, num_steps=3, stride=2))
    for side in sides:
        assert hard[side] is None
        assert re.fullmatch(r"[\d.]+ dB after 3 steps", hard["problems"][side])


def test_the_plot_needs_a_side():
    assert plot.throughput([]) is None
    row = {"benchmark": "step", "model": "m", "batch_size": 1, "lanes": 1, "devices": 1}
    assert plot.throughput([{**row, "jaxleak": None, "pytorch": None}]) is None
    time = {"ms_a_lane_step": {"median": 1.0, "quartiles": [0.9, 1.2]}}
    assert plot.throughput([{**row, "jaxleak": time, "pytorch": None}]).startswith(b"\x89PNG")


def test_quick_leaves_what_is_given(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(bench, "_work", lambda *arguments: seen.append(arguments) or 0)
    assert run(tmp_path / "rows.jsonl", "--models", "vit", "depthwise", "--batch-sizes", "1", "4") == 0
    ((size, batch_sizes, plan, _),) = seen
    assert (size.models, plan.lanes, batch_sizes) == (("vit", "depthwise"), (1, 4), (1, 4))
    assert (plan.seconds, plan.torch_compile, size.quality) == (0.002, False, ())
