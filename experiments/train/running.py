"""The work of `jaxleak train`: it trains the runs of all seeds, prints, and leaves the folder."""

import pathlib
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console

from jaxleak import fl
from jaxleak.experiments import defending, folder
from jaxleak.experiments.train import curves
from jaxleak.experiments.train.federation import Federation
from jaxleak.experiments.train.privacy import Spent
from jaxleak.experiments.words import plural


class _Rows:
    """Appends rows to `results.jsonl` as rounds end, none twice where a run is resumed."""

    def __init__(self, config: Mapping[str, Any], out: pathlib.Path):
        self._config, self._out = config, out
        held = folder.whole_results(out / folder.RESULTS, folder.TRAINING_ROW)
        self._there = {(row["seed"], row["round"]) for row in held}
        if (out / folder.RESULTS).exists():
            folder.write_results(out, held, folder.TRAINING_ROW)

    def append(self, seed: int, point: Mapping[str, Any]) -> None:
        if (seed, point["round"]) not in self._there:
            folder.append_results(self._out, [curves.row_of(self._config, seed, point)], folder.TRAINING_ROW)


def work(
    federations: Sequence[Federation],
    record: Collection[tuple[int, int]],
    config: dict[str, Any],
    about: Mapping[str, Any],
    command: str,
    out: pathlib.Path,
    spent: Spent | None,
) -> int:
    """Trains, writes the folder, prints; the exit code is 130 after Ctrl-C, as shells have it.

    Args:
      federations: one for each seed.
      record: pairs of a round and a client whose leaks are kept.
      config: the settings.
      about: those of them that a checkpoint has to agree with.
      command: that makes the same run again.
      out: the folder.
      spent: by DP-SGD.

    Raises:
      ValueError: an update is not finite and none may be left out, or a checkpoint is of another run.
      OSError: a file cannot be written.
    """
    first, rounds = federations[0], config["rounds"]

    def say(line: str) -> None:
        if not config["quiet"]:
            print(line, file=sys.stderr, flush=True)

    drawn = "" if config["clients_per_round"] is None else f", {config['clients_per_round']} a round"
    size = f"{plural(first.population.num_clients, 'client')}{drawn}, {plural(rounds, 'round')}"
    say(f"{config['model']} on {config['data']}: {size}, {plural(len(federations), 'run')}; compiling first")
    written = {
        "command": command,
        "config": config,
        **_described(config, federations, spent),
        **folder.provenance(),
    }
    runs: dict[int, fl.Trained] = {}
    stopped_after = None
    try:
        folder.write_config(out, written)
        rows = _Rows(config, out)
        for one in federations:
            try:
                runs[one.seed] = _train(one, record, config, about, out, rows)
            except fl.Interrupted as stopped:
                runs[one.seed], stopped_after = stopped.trained, stopped.num_rounds
                break
            except FloatingPointError as error:
                whose = f"seed {one.seed}: " if len(federations) > 1 else ""
                advice = "" if config["nonfinite"] == "exclude" else "; --nonfinite exclude leaves such clients out"
                raise ValueError(f"{whose}{error}{advice}") from error
    except BaseException:
        folder.discard_if_empty(out)
        raise
    # Imported here since matplotlib takes a second, which `jaxleak --help` need not pay.
    from jaxleak.experiments.train import report

    interrupted = stopped_after is not None
    reached = curves.Reached(config, written, runs, first.num_test, interrupted, spent)
    report.leave(reached, out)
    if interrupted:
        seed = f" of seed {federations[len(runs) - 1].seed}" if len(federations) > 1 else ""
        print(
            f"jaxleak: interrupted after {stopped_after} of {rounds} rounds{seed}; what was reached is in {out}; "
            f"the same command with --out {shlex.quote(str(out))} resumes",
            file=sys.stderr,
        )
        return 130
    for path in folder.checkpoints(out):
        path.unlink(missing_ok=True)
    if config["quiet"]:
        print(out)
        return 0
    curves.show(reached, Console())
    names = folder.TRAINING_FILES
    if record:
        names = (*names, folder.LEAKS)
        asked = len(record) * len(federations)
        short = "; clients that a round did not draw send nothing" if reached.num_leaks() < asked else ""
        print(f"recorded {reached.num_leaks()} of {asked} updates{short}")
    print(f"files: {out}/ ({', '.join(names)})")
    return 0


def _train(
    one: Federation,
    record: Collection[tuple[int, int]],
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    out: pathlib.Path,
    rows: _Rows,
) -> fl.Trained:
    return fl.train(
        one.rounds,
        one.params,
        one.population,
        one.key,
        evaluate=one.evaluate,
        every=config["every"],
        record=record,
        nonfinite=config["nonfinite"],
        checkpoint=out / folder.checkpoint_of(one.seed),
        about=about,
        progress=sys.stderr.isatty() and not config["quiet"],
        on_round=lambda point: rows.append(one.seed, point),
    )


def _described(config: Mapping[str, Any], federations: Sequence[Federation], spent: Spent | None) -> dict[str, Any]:
    """What `config.json` has beside the settings: what they came to."""
    held = {
        str(one.seed): {
            "num_examples": list(one.population.sizes),
            "num_labels": one.population.num_labels.tolist(),
        }
        for one in federations
    }
    return {
        "defense_settings": defending.described(defending.parse(config["defense"])),
        "population": held,
        "privacy": None if spent is None else spent.as_row(),
    }
