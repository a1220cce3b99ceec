"""The report of a run as one HTML page, and the whole run folder with it."""

import pathlib
from collections.abc import Mapping
from typing import Any

from jaxleak.experiments import folder, page, words
from jaxleak.experiments.attack import picture, summary
from jaxleak.experiments.attack.client import ASSUMED
from jaxleak.experiments.attack.outcome import Outcome

# What the attacker had of the labels, by the name of what gave them to it.
_LABELS = {
    "known": "granted: the attacker is told the true labels",
    "joint": "not granted: optimised together with the images",
}
_RECOVERED = "not granted: recovered from the update by {}"


def leave(outcome: Outcome, out: pathlib.Path) -> None:
    """Writes all files of a run folder; what costs nothing to keep first."""
    folder.write_config(out, outcome.record)
    folder.write_results(out, outcome.rows())
    folder.write_arrays(out, outcome.arrays())
    reconstructions = picture.reconstructions(outcome)
    folder.write(out / folder.PICTURE, reconstructions)
    shown = render(outcome, reconstructions, picture.loss_curves(outcome))
    folder.write(out / folder.REPORT, shown.encode())


def render(outcome: Outcome, reconstructions: bytes, loss_curves: bytes) -> str:
    """The report as one HTML page, with its pictures inside.

    Args:
      outcome: of the run.
      reconstructions: a picture, as PNG.
      loss_curves: another.
    """
    config, record = outcome.config, outcome.record
    labels = _LABELS.get(config["labels"], _RECOVERED.format(config["labels"]))
    defenses = [
        " ".join((one["name"], *(f"{setting}={value}" for setting, value in one["settings"].items())))
        for one in record["defenses"]
    ]
    return page.render(
        "attack/report.html.jinja",
        config=config,
        record=record,
        defense=", then ".join(defenses) or "none",
        labels=labels,
        sent="update" if summary.trains(config) else "gradient",
        training=local_training(config),
        verdict=summary.verdict(outcome),
        lanes=summary.lanes(outcome),
        spreads=summary.spreads(outcome),
        images=outcome.images(),
        statuses=sorted({image.status for image in outcome.images()}),
        batches=outcome.loss.shape[0],
        right=sum(image.label_correct for image in outcome.images()),
        right_of_all=int(outcome.evaluation.label_correct.sum()),
        total=outcome.evaluation.label_correct.size,
        interrupted=outcome.interrupted,
        num_steps=outcome.num_steps,
        reconstructions=reconstructions,
        loss_curves=loss_curves,
    )


def local_training(config: Mapping[str, Any]) -> dict[str, str] | None:
    """What the clients of a run did and what the attack took them to have done, in words; None without training."""
    if not summary.trains(config):
        return None
    steps, size = words.plural(config["local_steps"], "step"), words.plural(config["local_batch_size"], "image")
    order = (
        "in an order that each client drew and the attacker does not know" if config["shuffle"] else "in their order"
    )
    known = "" if config["hide_learning_rate"] else " and the learning rate"
    return {
        "did": f"{steps} of SGD, {size} a step, {order}, with a learning rate of {config['local_learning_rate']:g}",
        "assumed": f"{config['assume']}: {ASSUMED[config['assume']][0]}",
        "known": f"the number of local steps and of images in each{known}",
    }
