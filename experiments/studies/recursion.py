"""R-GAP and COPA without a defense: which networks they walk, how far, how fast, and what rank analysis says before.

Paper: Zhu and Blaschko 2021 (R-GAP: CNN6, and CNN6-d, whose second layer is rank-deficient) and Chen and Campbell 2021
(COPA). Neither paper's figures were at hand.
Command: python -m jaxleak.experiments.studies.recursion --data-dir FOLDER
  `--only cnn6` runs the networks with that in their name, `--attack copa` that attack; rows of others stay.
Time: see the rows; `compile_seconds` is most of it.
Expect: R-GAP at 40 dB or more on CNN6 in at most 10 s an image, as it is determined; not on CNN6-d, which is not.

Images are those from index 100 on, on none of which COPA's weight of total variation was chosen. Networks have their
first parameters, and images are as they are. `seconds_lanes` is an image's share of a run of all of them as lanes,
`seconds_alone` that of a run of one lane after the other, each of a second run, so that nothing is compiled in it.
Where an attack refuses a network, its row has `reason`, the message of the error that the library raises.

`rank` has for each layer what `jaxleak.attacks.rank_analysis` says of it: unknowns, equations from its output and from
its gradient, the index RA-i, and the share of its input that the equations give back (null before pooling by maxima).
"""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import tyro

import jaxleak as jl
from jaxleak.experiments import data
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.attack.evaluation import evaluate
from jaxleak.experiments.attack.figures import figures
from jaxleak.experiments.studies.support import images as images_
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.comparison import Comparison, only
from jaxleak.names import lookup

ATTACKS = ("rgap", "copa")
FIRST = 100
IDENTITY = ("network", "dataset", "attack")


class Network(NamedTuple):
    """What is attacked.

    Attributes:
      model: a name of `jaxleak.models`.
      data: the name of a data set.
      settings: of the model.
      alone: whether a run of one lane after the other is timed too; it is compiled apart.
    """

    model: str
    data: str
    settings: Mapping[str, Any] = {}
    alone: bool = False


_NETWORKS = {
    "cnn6": Network("cnn6", "cifar10", alone=True),
    "cnn6-d": Network("cnn6", "cifar10", {"second": 20}),
    "cnn6, relu": Network("cnn6", "cifar10", {"activation": "relu"}),
    "lenet": Network("lenet", "cifar10"),
    "lenet5": Network("lenet5", "mnist", {"image_size": 28}),
}
# scale: images, networks
SCALES: dict[str, tuple[int, dict[str, Network]]] = {
    "seconds": (
        2,
        {
            "mlp": Network("mlp", "digits", {"hidden": (16,), "activation": "leaky_relu"}, alone=True),
            "mlp, relu": Network("mlp", "digits", {"hidden": (16,), "activation": "relu"}),
        },
    ),
    "minutes": (20, _NETWORKS),
    "paper": (100, _NETWORKS),
}


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Options of this study.

    Attributes:
      only: run the networks that have this in their name.
      attack: run this attack alone; both by default.
    """

    only: str = ""
    attack: str = ""


def _determined(row):
    return None if row is None else all(layer["is_determined"] for layer in row["rank"])


def _orders(rows):
    cells = {(row["network"], row["attack"]): row for row in rows}
    for attack, name in (("rgap", "R-GAP"), ("copa", "COPA")):
        row = cells.get(("cnn6", attack))
        claim = f"{name} on cnn6: the median PSNR is 40 dB or more"
        yield claim, None if row is None else row["psnr_median"] >= 40
    row = cells.get(("cnn6", "rgap"))
    slowest = None if row is None else max(row["seconds_lanes"], row["seconds_alone"] or 0)
    yield "R-GAP on cnn6: at most 10 s an image, as lanes and alone", None if row is None else slowest <= 10
    yield "rank analysis: every layer of cnn6 is determined", _determined(row)
    deficient = [cells[network, attack] for network, attack in cells if network == "cnn6-d"]
    second = None if not deficient else not deficient[0]["rank"][1]["is_determined"]
    yield "rank analysis: the second layer of cnn6-d is not determined", second
    psnr = [only(rows, "psnr_median", network="cnn6-d", attack=attack) for attack in ATTACKS]
    yield "cnn6-d: COPA is above R-GAP", None if None in psnr else psnr[1] > psnr[0]
    for network in ("cnn6, relu", "lenet5"):
        row = cells.get((network, "rgap"))
        yield f"R-GAP refuses {network}", None if row is None else "reason" in row


def _shares(row):
    """Of what layers their equations give back, the lowest and where; nothing before it can be trusted."""
    known = [layer for layer in row["rank"] if layer["determined"] is not None]
    worst = min(known, key=lambda layer: layer["determined"])
    return f"{worst['determined']:.3f} ({worst['name']})"


COMPARISON = Comparison(
    artefact="R-GAP and COPA without a defense (no table of a paper)",
    paper="zhu2021rgap",
    what="PSNR of single images rebuilt layer by layer, seconds an image after compiling, and what rank analysis says.",
    columns={
        "network": "network",
        "data": "dataset",
        "attack": "attack",
        "images": "images",
        "PSNR (dB)": lambda row: row.get("reason", row.get("psnr_median")),
        "quartiles (dB)": "psnr_quartiles",
        "SSIM": "ssim_median",
        "label right": "label_correct",
        "seconds, lanes": "seconds_lanes",
        "seconds, alone": "seconds_alone",
        "compiling (s)": "compile_seconds",
        "all determined": _determined,
        "least determined": _shares,
    },
    judge=_orders,
    differs="Neither paper's figures were at hand.",
)


def main(options: Options) -> list[dict]:
    """Runs the study."""
    count, networks = SCALES[options.scale]
    if options.attack:
        lookup("attack", options.attack, dict.fromkeys(ATTACKS))
    chosen = {name: network for name, network in networks.items() if options.only in name}
    if not chosen:
        raise ValueError(f"only={options.only!r}: in no network of {', '.join(networks)}")
    attacks = (options.attack,) if options.attack else ATTACKS
    cells = [functools.partial(_network, name, chosen[name], attacks, count, options) for name in chosen]
    return study.collect("recursion", options, cells, identity=IDENTITY, line=_line)


def _line(row: Mapping[str, Any]) -> str:
    start = f"{row['attack']} {row['network']} {row['dataset']}: "
    if "reason" in row:
        return start + row["reason"]
    return start + (
        f"PSNR {row['psnr_median']} dB, SSIM {row['ssim_median']}, labels {row['label_correct']:.0%}, "
        f"{row['seconds_lanes']} s an image, {row['compile_seconds']} s to compile"
    )


def _network(
    name: str, network: Network, attacks: tuple[str, ...], count: int, options: Options
) -> list[dict[str, Any]]:
    dataset = images_.since(data.load(network.data, options.data_dir), FIRST)
    prepared = scenario.prepare(
        model=network.model, dataset=dataset, images=count, normalise=False, model_settings=network.settings
    )
    key = jax.random.key(0)
    ranks = jl.attacks.rank_analysis(prepared.observe, prepared.params, prepared.shape, key=key)
    common = {
        "network": name,
        "model": network.model,
        "model_settings": dict(network.settings),
        "dataset": dataset.name,
        "batch_size": 1,
        "images": count,
        "first_image": FIRST,
        "seeds": 1,
        "rank": [layer(rank) for rank in ranks],
    }
    return [{"attack": attack, **common, **attacked(prepared, attack, alone=network.alone)} for attack in attacks]


def layer(rank: Any) -> dict[str, Any]:
    """A layer of a rank analysis as JSON has it; its name without the tree around it."""
    share = rank.determined if math.isfinite(rank.determined) else None
    name = "/".join(part.strip("'") for part in rank.name.strip("[]").split("][")[1:-1])
    found = {**rank._asdict(), "name": name, "determined": None if share is None else round(share, 6)}
    return {**found, "is_determined": bool(rank.is_determined)}


def attacked(prepared: scenario.Scenario, attack: str, *, alone: bool) -> dict[str, Any]:
    """Of an attack on all leaks the figures and the times of a second run, or the reason why there is none."""
    try:
        chosen = jl.attacks.NAMES[attack](
            prepared.observe, shape=prepared.shape, num_classes=prepared.dataset.num_classes
        )
        keys = jax.random.split(jax.random.key(1), (len(prepared.indices), 1))
        first, _ = _timed(chosen, prepared, keys)
    except ValueError as error:
        return {"reason": str(error)}
    again, result = _timed(chosen, prepared, keys)
    one = None
    if alone:
        _timed(chosen, prepared, keys, num_slots=1)
        one = round(_timed(chosen, prepared, keys, num_slots=1)[0] / len(prepared.indices), 3)
    return {
        "settings": {},
        "num_steps": chosen.num_steps,
        "seconds": round(first, 1),
        "compile_seconds": round(first - again, 1),
        "seconds_lanes": round(again / len(prepared.indices), 3),
        "seconds_alone": one,
        **figures(result, evaluate(prepared, result)),
    }


def _timed(attack: jl.Attack, prepared: scenario.Scenario, keys: jax.Array, **settings: Any) -> tuple[float, jl.Result]:
    started = time.perf_counter()
    result = jax.block_until_ready(jl.run(attack, prepared.leaks, keys, **settings))
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main(tyro.cli(Options))
