"""How long until a reconstruction is good: whole attacks on a LeNet, a photograph a lane, by `jaxleak.run`."""

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxleak as jl
from jaxleak.benchmarks import measure, subjects
from jaxleak.benchmarks.rows import Row, torch_device, why_no_torch
from jaxleak.benchmarks.subjects import Subject
from jaxleak.experiments import data

MODEL = "lenet"
LANES = 8


@dataclasses.dataclass(frozen=True)
class Goal:
    """What is good enough.

    Attributes:
      psnr: of the median lane, in dB.
      num_steps: of the attack, which its learning rate depends on; no more are taken.
      stride: every how many steps the PSNR is looked at.
    """

    psnr: float
    num_steps: int
    stride: int


GOALS: Mapping[str, Goal] = {
    "idlg": Goal(psnr=20.0, num_steps=100, stride=5),
    # What it reaches on a LeNet, whose sigmoids it was not made for.
    "inverting_gradients": Goal(psnr=13.0, num_steps=1000, stride=50),
}

# Other settings of the attacks than their own.
SETTINGS: Mapping[str, Mapping[str, Any]] = {"idlg": {}, "inverting_gradients": {"total_variation": 0.1}}


def row(name: str, goal: Goal) -> Row:
    """The seconds that all lanes take for the steps after which the median lane is good.

    Args:
      name: of the attack, a key of `GOALS`.
      goal: what is good enough.

    Returns:
      A row; a side that did not get there is null, and `problems` says how far it got.
    """
    load = os.getloadavg()[0]
    x, y = data.load("photos").take(range(LANES))
    target = subjects.create(MODEL, jl.Batch(x[:1], y[:1]))
    targets = [target.of(jl.Batch(x[i : i + 1], y[i : i + 1])) for i in range(LANES)]
    problems: dict[str, str] = {}
    ours = _ours(name, goal, targets, problems)
    missing = why_no_torch()
    if missing is None:
        theirs = _theirs(name, goal, targets, problems)
    else:
        theirs, problems["pytorch"] = None, missing
    both = ours is not None and theirs is not None
    return {
        "benchmark": "quality",
        "attack": name,
        "model": MODEL,
        "batch_size": 1,
        "lanes": LANES,
        "settings": dict(SETTINGS[name]),
        "goal": dataclasses.asdict(goal),
        "jaxleak": ours,
        "pytorch": theirs,
        "times_as_fast_as_pytorch": measure.digits(theirs["seconds"] / ours["seconds"]) if both else None,
        "times_as_fast_without_compiling": (
            measure.digits(theirs["seconds"] / ours["seconds_without_compiling"]) if both else None
        ),
        "load_average": [round(load, 2), round(os.getloadavg()[0], 2)],
        "problems": problems,
    }


def _median_psnr(truths: Any, x: Any) -> float:
    """Of lanes [lanes, 1, height, width, channels]; a lane that is not finite counts as the worst."""
    psnr = np.asarray(jax.vmap(jl.metrics.psnr)(jnp.asarray(truths), jnp.asarray(x)))
    return float(np.median(np.where(np.isfinite(psnr), psnr, -np.inf)))


def _ours(name: str, goal: Goal, targets: list[Subject], problems: dict[str, str]) -> Row | None:
    observe, params = targets[0].observe, targets[0].leak.params
    leaks = jl.Leak(params, jax.tree.map(lambda *leaves: jnp.stack(leaves), *(t.leak.update for t in targets)))
    truths = np.stack([target.truth.x for target in targets])
    attack = jl.attacks.NAMES[name](
        observe, shape=truths.shape[1:], num_classes=10, num_steps=goal.num_steps, **SETTINGS[name]
    )
    keys = jax.random.split(jax.random.key(1), LANES)
    num_steps, psnr = _steps_needed(attack, leaks, keys, truths, goal)
    if psnr < goal.psnr:
        problems["jaxleak"] = f"{psnr:.1f} dB after {num_steps} steps"
        return None
    # The settings are those of the whole attack; it is only left earlier.
    shortened = dataclasses.replace(attack, num_steps=num_steps)
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        jax.block_until_ready(jl.run(shortened, leaks, keys))
        seconds.append(measure.digits(time.perf_counter() - started))
    with_compiling, without = seconds
    return {
        "num_steps": num_steps,
        "psnr": round(psnr, 2),
        "seconds": with_compiling,
        "seconds_without_compiling": without,
    }


def _steps_needed(attack: jl.Attack, leaks: jl.Leak, keys: jax.Array, truths: Any, goal: Goal) -> tuple[int, float]:
    """After how many steps the median lane is good, and its PSNR there; or at the end."""

    def leak_of(update):
        return dataclasses.replace(leaks, update=update)

    @jax.jit
    def start(keys, updates):
        return jax.vmap(lambda key, update: attack.init(key, leak_of(update)))(keys, updates)

    @jax.jit
    def advance(keys, updates, states, first, last):
        def lane(key, update, state):
            leak = leak_of(update)
            state = jax.lax.fori_loop(
                first, last, lambda i, state: attack.step(jax.random.fold_in(key, i), state, leak), state
            )
            return state, attack.reconstruct(state, leak).batch.x

        return jax.vmap(lane)(keys, updates, states)

    states, taken, psnr = start(keys, leaks.update), 0, -np.inf
    while taken < goal.num_steps and psnr < goal.psnr:
        last = min(taken + goal.stride, goal.num_steps)
        states, x = advance(keys, leaks.update, states, taken, last)
        taken, psnr = last, _median_psnr(truths, x)
    return taken, psnr


def _theirs(name: str, goal: Goal, targets: list[Subject], problems: dict[str, str]) -> Row | None:
    from jaxleak.benchmarks import reference, reference_attacks

    truths = np.stack([target.truth.x for target in targets])
    device = torch_device()
    threads = reference.best_threads(targets[0], device)
    reference.seed(1)
    attack = reference_attacks.NAMES[name]
    lanes = [attack(target, device, threads, goal.num_steps, **SETTINGS[name]) for target in targets]
    seconds, taken, psnr = 0.0, 0, -np.inf
    while taken < goal.num_steps and psnr < goal.psnr:
        last = min(taken + goal.stride, goal.num_steps)
        started = time.perf_counter()
        for lane in lanes:
            for _ in range(taken, last):
                lane.step()
        reference.synchronise(device)
        seconds += time.perf_counter() - started
        taken, psnr = last, _median_psnr(truths, np.stack([lane.images() for lane in lanes]))
    if psnr < goal.psnr:
        problems["pytorch"] = f"{psnr:.1f} dB after {taken} steps"
        return None
    return {"num_steps": taken, "psnr": round(psnr, 2), "seconds": measure.digits(seconds), "threads": threads}
