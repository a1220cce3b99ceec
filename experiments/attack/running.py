"""The work of `jaxleak attack`: it runs the lanes, prints, and leaves the folder."""

import pathlib
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

import jaxleak as jl
from jaxleak import distributed
from jaxleak.experiments import folder, machine
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.attack.outcome import measure
from jaxleak.experiments.attack.rows import Rows
from jaxleak.experiments.attack.summary import show, trains
from jaxleak.experiments.words import plural


def lane_keys(seed: int, batches: int, seeds: int) -> jax.Array:
    """Keys [batches, seeds], each depending on its place alone: more images or seeds leave the others as they are."""
    key = jax.random.key(seed)

    def of(batch: jax.Array, lane: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, batch), lane)

    return jax.vmap(jax.vmap(of, (None, 0)), (0, None))(jnp.arange(batches), jnp.arange(seeds))


def _run(attack: jl.Attack, prepared: scenario.Scenario, config: Mapping[str, Any], **driven: Any) -> jl.Result:
    """Runs all lanes, [batches, seeds], as the flags say."""
    keys = lane_keys(config["seed"], len(prepared.indices), config["seeds"])
    limit = None if config["memory_limit"] is None else int(config["memory_limit"] * machine.GIB)
    devices = machine.use(config["devices"])
    result = jl.run(attack, prepared.leaks, keys, devices=devices, memory_limit=limit, **driven)
    return jax.block_until_ready(result)


def follow(attack: jl.Attack, prepared: scenario.Scenario, config: Mapping[str, Any]) -> int:
    """What the processes other than 0 do: run their lanes, and neither print nor write."""
    try:
        _run(attack, prepared, config, checkpoint=pathlib.Path(folder.CHECKPOINT))
    except jl.Interrupted:
        return 130
    return 0


def work(
    attack: jl.Attack,
    prepared: scenario.Scenario,
    config: dict[str, Any],
    command: str,
    out: pathlib.Path,
) -> int:
    """Runs the attack, writes the folder, prints; the exit code is 130 after Ctrl-C, as shells have it."""
    batches, seeds = len(prepared.indices), config["seeds"]

    def say(line: str) -> None:
        if not config["quiet"]:
            print(line, file=sys.stderr, flush=True)

    sent = "update" if trains(config) else "gradient"
    size = f"{plural(batches, sent)} x {plural(seeds, 'seed')} = {plural(batches * seeds, 'lane')}"
    say(f"{attack.name}: {size}, {plural(attack.num_steps, 'step')}; compiling first")
    started = time.perf_counter()
    interrupted, num_steps = False, attack.num_steps
    checkpoint = out / folder.CHECKPOINT
    try:
        folder.write_config(out, {"command": command, "config": config, **folder.provenance()})
        result = _run(
            attack,
            prepared,
            config,
            checkpoint=checkpoint,
            on_lanes=Rows(prepared, config, out).append,
            on_plan=lambda plan: say(_planned(plan)),
            progress=sys.stderr.isatty() and not config["quiet"],
        )
    except jl.Interrupted as stopped:
        interrupted, result, num_steps = True, stopped.result, int(stopped.num_steps)
    except BaseException:
        folder.discard_if_empty(out)
        raise
    seconds = time.perf_counter() - started
    # Imported here since matplotlib takes a second, which `jaxleak --help` need not pay.
    from jaxleak.experiments.attack import report

    reached = measure(prepared, result, config, command, num_steps=num_steps, seconds=seconds)
    report.leave(reached, out)
    if interrupted:
        print(
            f"jaxleak: interrupted after {num_steps} of {attack.num_steps} steps; what was reached is in {out}; "
            f"the same command with --out {shlex.quote(str(out))} resumes",
            file=sys.stderr,
        )
        return 130
    checkpoint.unlink(missing_ok=True)
    if config["quiet"]:
        print(out)
    else:
        show(reached, Console())
        print(f"files: {out}/ ({', '.join(folder.FILES)})")
    return 0


def _planned(plan: Any) -> str:
    """How the lanes are run, in one line."""
    here = " in this process" if distributed.count() > 1 else ""
    at_once = f"{plan.num_slots} at a time on {plural(plan.num_devices, 'device')}"
    return f"{plural(plan.num_lanes, 'lane')}{here}, {at_once}, {plan.bytes_a_lane / machine.MIB:.3g} MiB a lane"
