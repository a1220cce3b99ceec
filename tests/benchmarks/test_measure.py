import numpy as np
import pytest

import jaxleak as jl
from jaxleak import memory
from jaxleak.benchmarks import measure, subjects


def test_sides_take_turns_and_times_are_of_one_repetition():
    calls = []

    def side(name, seconds):
        def run(count):
            calls.append((name, count))
            return seconds * count

        return run

    times = measure.alternate({"slow": side("slow", 0.2), "fast": side("fast", 0.01)}, repeats=3, seconds=0.1)
    assert calls[:4] == [("slow", 1), ("slow", 1), ("fast", 1), ("fast", 1)]
    assert calls[4:] == [("slow", 1), ("fast", 10)] * 3
    np.testing.assert_allclose(times["slow"], [0.2] * 3)
    np.testing.assert_allclose(times["fast"], [0.01] * 3)


def test_ratio_of_medians_and_quartiles_of_pairs():
    times = {"ours": np.array([1.0, 2.0, 3.0]), "others": np.array([2.0, 1.0, 4.0])}
    assert measure.ratio(times, "ours", "others") == {"median": 1.0, "quartiles": [0.625, 1.375]}
    assert measure.ratio(times, "ours", "nobody") is None
    assert measure.spread(np.array([0.123456, 0.123456])) == {"median": 0.1235, "quartiles": [0.1235, 0.1235]}


def test_a_program_that_does_not_fit_is_not_run(monkeypatch, truth):
    subject = subjects.create("lenet", truth(0, (1, 8, 8, 3)))
    monkeypatch.setattr(memory, "available", lambda devices: 1000)
    with pytest.raises(MemoryError, match="^memory_limit=1000: 2 lanes at a time need"):
        measure.program(subject, 2)


def test_a_program_takes_time_for_every_step(truth):
    program = measure.program(subjects.create("lenet", truth(0, (1, 8, 8, 3))), 2)
    program.run(1)
    assert min(program.run(200) for _ in range(3)) > 10 * min(program.run(2) for _ in range(3))
    assert program.plan.compile_seconds > 0
    # At least the candidate and its two moments.
    assert program.plan.bytes_a_lane > 3 * 4 * 8 * 8 * 3


def test_another_batch_of_the_same_client(truth):
    subject = subjects.create("lenet", truth(0, (1, 8, 8, 3)))
    other = subject.of(truth(1, (1, 8, 8, 3)))
    assert isinstance(other.leak, jl.Leak)
    assert other.leak.params is subject.leak.params
    assert not np.array_equal(
        other.leak.update["params"]["conv1"]["kernel"], subject.leak.update["params"]["conv1"]["kernel"]
    )
