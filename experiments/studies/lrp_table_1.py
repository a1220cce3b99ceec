"""LRP, Table 1: two clients with classes of their own, each at its own rate, with and without perturbation.

Paper: papers/learning_rate_perturbation §4.1, Table 1: MNIST, client 1 has 400 examples of each of the classes 0 and 1,
client 2 has 100 of each of the others; rates from {.005, .01, .02}, each fixed or drawn in every local step from
U(0, 2 rate); CNN, MLP and logistic regression, 100 rounds, three runs. Best at (.005, .02), worst at (.02, .005) on all
models: CNN 94.21 and 85.97, MLP 89.18 and 85.50, logistic regression 87.22 and 85.35.
Command: python -m jaxleak.experiments.studies.lrp_table_1 --data-dir FOLDER
Time: see `seconds` in the rows; those of the CNN were taken beside other work.
Expect: the same best and worst pairs, and perturbed within a point of unperturbed. The last row of a model says.

All pairs, perturbed or not, are lanes of one program, which runs once a seed: the seed gives the initial parameters,
who has which examples, and their order, so that lanes of a seed differ in rates alone. `seconds` of a row are its share
of the program's. `largest_difference` is the largest |perturbed - unperturbed| of a pair, in points.

Differs from the paper in: Table 1 names neither local steps nor batch size: here 50 and 32, those of §5.1 on MNIST. The
models are not described: here LeNet-5 at 28 x 28 pixels, one hidden layer of 200, and none. The seeds are of §5.1 too.
Examples of a class are drawn one by one, not in shards of 100 (`jaxleak.fl.partition.class_split`).
"""

import functools
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxleak as jl
from jaxleak import fl
from jaxleak.experiments.studies.support import accuracy, study
from jaxleak.experiments.studies.support.comparison import Comparison, grouped, only

RATES = (0.005, 0.01, 0.02)
PAIRS = tuple(itertools.product(RATES, RATES))
CLASSES = ((0, 1), tuple(range(2, 10)))
MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "cnn": ("lenet5", {}),
    "mlp": ("mlp", {"hidden": (200,)}),
    "logistic_regression": ("mlp", {"hidden": ()}),
}
# By model, unperturbed then perturbed, in the order of `PAIRS`.
PAPER = {
    "cnn": (
        (88.36, 92.10, 94.21, 87.07, 91.55, 93.96, 85.97, 90.98, 93.56),
        (87.97, 92.00, 94.39, 86.91, 91.32, 93.95, 85.53, 90.34, 93.59),
    ),
    "mlp": (
        (87.22, 88.62, 89.18, 86.44, 88.08, 88.84, 85.50, 87.61, 88.50),
        (87.18, 88.59, 89.18, 86.35, 88.16, 89.02, 85.46, 87.67, 88.63),
    ),
    "logistic_regression": (
        (86.84, 87.14, 87.22, 86.21, 86.78, 86.83, 85.35, 86.14, 86.46),
        (86.84, 87.14, 87.24, 86.26, 86.78, 86.88, 85.48, 86.29, 86.46),
    ),
}


class Scale(NamedTuple):
    """How much of the study. `every` divides `rounds`."""

    dataset: str = "mnist"
    models: tuple[str, ...] = tuple(MODELS)
    counts: tuple[int, int] = (400, 100)
    rounds: int = 100
    every: int = 10
    num_steps: int = 50
    batch_size: int = 32
    seeds: tuple[int, ...] = (1024, 1022, 1020)


SCALES = {
    "seconds": Scale("digits", ("logistic_regression",), (40, 10), 2, 1, 5, 8, (1024, 1022)),
    # The paper's own scale fits two cores.
    "minutes": Scale(),
    "paper": Scale(),
}


def _lines(rows):
    for _, own in grouped([row for row in rows if "claims" not in row], "model", "dataset", "settings.rates"):
        line = dict(own[0])
        for kind, perturbed in (("still", False), ("perturbed", True)):
            line[kind] = _mean(own, settings__perturbed=perturbed)
            line[f"paper_{kind}"] = only(own, "paper.accuracy", settings__perturbed=perturbed)
        yield line


def _mean(rows, **wanted):
    mean, stddev = (only(rows, field, **wanted) for field in ("accuracy", "accuracy_stddev"))
    return mean if mean is None or stddev is None else f"{mean:.2f} ± {stddev:.2f}"


def _orders(rows):
    for (model, dataset), own in grouped(rows, "model", "dataset"):
        found = next((row["claims"] for row in own if "claims" in row), {})
        place = f"{model}, {dataset}"
        for kind in ("unperturbed", "perturbed"):
            for which, pair in (("best", (0.005, 0.02)), ("worst", (0.02, 0.005))):
                at = found.get(f"{which}_{kind}")
                yield f"{place}, {kind}: {which} at rates of {pair[0]} and {pair[1]}", at and tuple(at) == pair
        difference = found.get("largest_difference")
        within = None if difference is None else difference <= 1
        yield f"{place}: perturbed and unperturbed are within a point of each other at all pairs of rates", within


COMPARISON = Comparison(
    artefact="LRP, Table 1",
    paper="wan2023enhancing",
    what="Test accuracy of two clients with classes of their own, by their rates, fixed and perturbed, in %: mean and "
    "standard deviation of the runs.",
    columns={
        "model": "model",
        "data": "dataset",
        "rate of client 1": lambda row: row["settings"]["rates"][0],
        "rate of client 2": lambda row: row["settings"]["rates"][1],
        "rounds": "rounds",
        "runs": "runs",
        "unperturbed": "still",
        "paper's unperturbed": "paper_still",
        "perturbed": "perturbed",
        "paper's perturbed": "paper_perturbed",
    },
    judge=_orders,
    differs="The paper does not describe its models, and for this table names neither local steps nor batches.",
    select=_lines,
)


def main(options: study.Options) -> list[dict]:
    """Runs the study."""
    scale = SCALES[options.scale]
    cells: list[Callable[[], dict]] = []
    for name in scale.models:
        # The first cell of a model computes all of them.
        trained = functools.cache(functools.partial(train, name, scale, options))
        for perturbed in (False, True):
            cells += [functools.partial(_cell, trained, name, scale, perturbed, pair) for pair in PAIRS]
        cells.append(functools.partial(_claims, trained, name, scale))
    return study.collect("lrp_table_1", options, cells)


def lanes(loss_fn: Any, scale: Scale) -> Callable[..., tuple[fl.State, jax.Array]]:
    """`every` rounds of all lanes as one program.

    Args:
      loss_fn: of the clients.
      scale: of the study.

    Returns:
      `go(key, states, population, rates [lanes, clients], spreads [lanes]) -> (states, excluded [lanes])`, the number
      of updates that were not finite and left out.
    """

    def lane(key, given, one):
        state, rates, spread = one

        def perturbation(client: fl.Client) -> Any:
            return jl.defenses.learning_rate_perturbation(spread, key=client.key)

        rounds = fl.fedavg(
            loss_fn,
            learning_rate=rates,
            num_rounds=scale.rounds,
            batch_size=scale.batch_size,
            num_steps=scale.num_steps,
            defense=perturbation,
        )

        def body(state, _):
            state, sent = rounds.step(key, state, given)
            return state, jnp.sum(~sent.finite)

        state, excluded = jax.lax.scan(body, state, length=scale.every)
        return state, jnp.sum(excluded)

    @jax.jit
    def go(key, states, given, rates, spreads):
        one = functools.partial(lane, key, given)
        if jax.default_backend() == "cpu":
            # Lanes side by side gain nothing on two cores.
            return jax.lax.map(one, (states, rates, spreads))
        return jax.vmap(one)((states, rates, spreads))

    return go


def train(
    name: str, scale: Scale, options: study.Options
) -> tuple[dict[tuple[bool, tuple[float, float]], list], float]:
    """Curves of all runs of a model, by (perturbed, pair), and the seconds that each pair took."""
    splits = accuracy.load(scale.dataset, options.data_dir)
    kind, settings = MODELS[name]
    model = splits.model(kind, **settings)
    loss_fn = jl.cross_entropy(model.apply)
    go, evaluate = lanes(loss_fn, scale), fl.evaluation(model.apply, splits.test_x, splits.test_y)
    places = list(itertools.product((False, True), PAIRS))
    rates = jnp.asarray([pair for _, pair in places], jnp.float32)
    spreads = jnp.asarray([float(perturbed) for perturbed, _ in places])
    found: dict[tuple[bool, tuple[float, float]], list] = {place: [] for place in places}
    started = time.perf_counter()
    for seed in scale.seeds:
        parts = fl.partition.class_split(splits.y, CLASSES, counts=scale.counts, seed=seed)
        held = np.concatenate(parts)
        # Only what clients hold goes to the device.
        edges = np.cumsum([0, *map(len, parts)])
        own = [np.arange(*pair) for pair in itertools.pairwise(edges)]
        population = fl.population(splits.x[held], splits.y[held], own)
        first = fl.State(splits.init(model, seed), jnp.zeros((), jnp.int32))
        states = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(places)), first)
        curves = [{"round": [], "accuracy": [], "loss": [], "excluded": 0} for _ in places]
        for number in range(scale.every, scale.rounds + 1, scale.every):
            states, excluded = go(jax.random.key(seed), states, population, rates, spreads)
            for i, curve in enumerate(curves):
                measured = evaluate(jax.tree.map(lambda leaf, i=i: leaf[i], states.params))
                curve["round"].append(number)
                curve["accuracy"].append(accuracy.percent(measured["accuracy"]))
                curve["loss"].append(accuracy.number(measured["loss"]))
                curve["excluded"] += int(excluded[i])
        for place, curve in zip(places, curves, strict=True):
            found[place].append(curve)
    return found, (time.perf_counter() - started) / len(places)


def claims(figures: Mapping[tuple[bool, tuple[float, float]], float]) -> dict[str, Any]:
    """What §4.1 says of accuracies by (perturbed, pair): the best and the worst pair, and what perturbation costs."""
    found: dict[str, Any] = {}
    for perturbed, kind in ((False, "unperturbed"), (True, "perturbed")):
        found[f"best_{kind}"] = max(PAIRS, key=lambda pair, perturbed=perturbed: figures[perturbed, pair])
        found[f"worst_{kind}"] = min(PAIRS, key=lambda pair, perturbed=perturbed: figures[perturbed, pair])
    found["largest_difference"] = round(max(abs(figures[True, pair] - figures[False, pair]) for pair in PAIRS), 2)
    return found


def _cell(trained: Callable[[], Any], name: str, scale: Scale, perturbed: bool, pair: tuple[float, float]) -> dict:
    found, seconds = trained()
    settings = {
        "rates": pair,
        "perturbed": perturbed,
        "clients": f"{scale.counts[0]} x 2 classes, {scale.counts[1]} x 8",
        "local_steps": scale.num_steps,
        "batch_size": scale.batch_size,
    }
    return accuracy.row(
        found[perturbed, pair],
        model=name,
        dataset=scale.dataset,
        settings=settings,
        seconds=seconds,
        paper={"dataset": "mnist", "accuracy": PAPER[name][perturbed][PAIRS.index(pair)]},
    )


def _claims(trained: Callable[[], Any], name: str, scale: Scale) -> dict:
    found, _ = trained()
    ours = {place: np.mean([curve["accuracy"][-1] for curve in runs]) for place, runs in found.items()}
    theirs = {
        (perturbed, pair): PAPER[name][perturbed][i] for perturbed in (False, True) for i, pair in enumerate(PAIRS)
    }
    about = {"pairs": len(PAIRS), "runs": len(scale.seeds)}
    return {
        "model": name,
        "dataset": scale.dataset,
        "settings": about,
        "claims": claims(ours),
        "paper": {"dataset": "mnist", **claims(theirs)},
    }


if __name__ == "__main__":
    main(tyro.cli(study.Options))
