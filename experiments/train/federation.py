"""A federation of an experiment: data by name become clients with a model, a defense, and rounds to train in."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxleak as jl
from jaxleak import defenses, fl, models, validate
from jaxleak.experiments import defending
from jaxleak.experiments.data.dataset import Dataset
from jaxleak.experiments.train import partitioning

PyTree = Any

DEFAULT_NUM_CLIENTS = 10

# Reading more images than this takes seconds, and is announced.
_MANY_IMAGES = 2_000
# Folded into the key of the seed, for what is drawn in training: the key itself made the initial parameters.
_TRAINING = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Federation:
    """What `jaxleak.fl.train` takes, and where it came from.

    Attributes:
      dataset: of the clients' examples.
      test: of the examples that nobody has.
      model: the network.
      params: its initial parameters.
      population: the clients.
      rounds: of training.
      evaluate: `evaluate(params) -> {"accuracy": in [0, 1], "loss": mean cross-entropy}` over the test examples.
      loss_fn: of the clients.
      parts: of each client, the indices of its examples in `dataset`, which are rows of the population as well.
      key: of what is drawn in training.
      seed: of the partition and of `key`.
      sums: over the clients, of examples and of classes held, as a secure sum gave them; None where no defense asks.
      num_test: how many test examples there are.
      again: `again(seed)`, the same federation from another seed: other initial parameters, another partition, other
        draws. Programs that were compiled serve it as well where the clients' sizes are the same.
    """

    dataset: Dataset
    test: Dataset
    model: Any
    params: PyTree
    population: fl.Population
    rounds: fl.Rounds
    evaluate: Callable[[PyTree], dict[str, float]]
    loss_fn: Callable[[PyTree, jl.Batch], jax.Array]
    parts: tuple[np.ndarray, ...]
    key: jax.Array
    seed: int
    sums: tuple[int, int] | None
    num_test: int
    again: Callable[[int], "Federation"]


def prepare(
    *,
    model: str,
    dataset: Dataset,
    test: Dataset,
    num_rounds: int,
    partition: str = "iid",
    num_clients: int | None = None,
    images: int | None = None,
    test_images: int | None = None,
    batch_size: int | None = 32,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    learning_rate: Any = 0.1,
    schedule: str = "constant",
    scheme: str = "II",
    clients_per_round: int | None = None,
    defense: str = "none",
    defended: str = "steps",
    normalise: bool = True,
    model_settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    model_seed: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    say: Callable[[str], None] | None = None,
    **form: Any,
) -> Federation:
    """Prepares clients that train on images of a data set.

    Args:
      model: a name of `jaxleak.models`.
      dataset: from `jaxleak.experiments.data.load`, the split of the clients. Its images are read once a process.
      test: the split to evaluate on.
      num_rounds: how many make a run.
      partition: who holds which images, as `jaxleak.experiments.train.partitioning` reads it.
      num_clients: how many there are; by default what the partition names, or 10.
      images: how many of the data set, the first ones; all by default.
      test_images: the same of the test set.
      batch_size: of a local step; None for all images of a client.
      num_steps: local steps, see `jaxleak.fl.fedavg`.
      num_epochs: local epochs in their place.
      learning_rate: of the clients, one number or one a client.
      schedule: of the learning rate over rounds.
      scheme: how the server weighs what it gets.
      clients_per_round: how many are drawn each round; all by default.
      defense: as `jaxleak.experiments.defending` reads it. Where it adapts to the classes that clients hold, the server
        has the sums over clients by `jaxleak.fl.secure_sum`.
      defended: "steps" or "update". What acts on an update sees no examples.
      normalise: the model normalises its input by the data set's statistics.
      model_settings: further settings of the model.
      seed: of the partition, and of what is drawn in training.
      model_seed: of the initial parameters; `seed` by default.
      devices: clients are split over them; the default device alone by default.
      say: is given a line before what takes seconds.
      **form: further settings of `jaxleak.fl.fedavg`.

    Returns:
      A Federation.

    Raises:
      ValueError: a name is unknown, or numbers do not fit each other or the data.
    """
    dealt, chain = partitioning.parse(partition), defending.parse(defense)
    count = (dealt.num_clients or DEFAULT_NUM_CLIENTS) if num_clients is None else num_clients
    validate.integer_at_least("num_clients", count, 1)
    validate.integer_at_least("seed", seed, 0)
    if clients_per_round is not None and clients_per_round > count:
        raise ValueError(f"clients_per_round={clients_per_round}: expected at most {count}, which there are")
    if np.ndim(learning_rate) and np.shape(learning_rate) != (count,):
        raise ValueError(f"learning_rate: {np.size(learning_rate)} numbers: expected one, or {count}, one a client")
    if (test.name, test.split) == (dataset.name, dataset.split):
        raise ValueError(f"test: split {test.split!r} of {test.name} is that of the clients: expected another one")
    if (test.shape, test.num_classes) != (dataset.shape, dataset.num_classes):
        raise ValueError(
            f"test: images of shape {test.shape}, {test.num_classes} classes: expected those of the clients, "
            f"{dataset.shape} and {dataset.num_classes}"
        )
    if defended == "update":
        _refuse_examples_unseen(chain)
    statistics = {"mean": dataset.mean, "stddev": dataset.stddev} if normalise else {"mean": 0.0, "stddev": 1.0}
    network = models.create(model, num_classes=dataset.num_classes, **{**statistics, **(model_settings or {})})
    shape = (1, *dataset.shape)
    try:
        jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, np.float32))
    except (TypeError, ValueError) as error:
        raise ValueError(f"model={model}: refuses images of shape {shape[1:]} of {dataset.name}: {error}") from error
    init = jax.jit(network.init)
    loss_fn = jl.cross_entropy(network.apply)

    @functools.cache
    def rounds_of(mean_labels: float) -> fl.Rounds:
        def of_client(client: fl.Client) -> Any:
            return defending.transformation(
                chain,
                key=client.key,
                loss_fn=loss_fn if defended == "steps" else None,
                num_labels=client.num_labels,
                mean_labels=mean_labels,
            )

        return fl.fedavg(
            loss_fn,
            learning_rate=learning_rate,
            num_rounds=num_rounds,
            batch_size=batch_size,
            num_steps=num_steps,
            num_epochs=num_epochs,
            scheme=scheme,
            clients_per_round=clients_per_round,
            schedule=schedule,
            defense=of_client if chain else None,
            defended=defended,
            devices=devices if devices is not None and len(devices) > 1 else None,
            **form,
        )

    rounds_of(1.0)  # refuses settings that do not fit, before images are read
    x, y = _read(dataset, images, "images", say)
    test_x, test_y = _read(test, test_images, "test_images", say)
    evaluate = fl.evaluation(network.apply, test_x, test_y)
    shared = {"x": jnp.asarray(x), "y": jnp.asarray(y, jnp.int32)}  # by the populations of all seeds

    def of(seed: int) -> Federation:
        parts = partitioning.deal(dealt, y, count, seed=seed)
        there = np.unique(y[np.concatenate(parts)])
        if len(there) < 2:
            raise ValueError(f"images: all that clients have are of class {there[0]}: expected at least two classes")
        population = dataclasses.replace(fl.population(x, y, parts), **shared)
        sums = _sums(chain, population)
        return Federation(
            dataset=dataset,
            test=test,
            model=network,
            params=init(jax.random.key(seed if model_seed is None else model_seed), np.zeros(shape, np.float32)),
            population=population,
            rounds=rounds_of(1.0 if sums is None else sums[1] / count),
            evaluate=evaluate,
            loss_fn=loss_fn,
            parts=parts,
            key=jax.random.fold_in(jax.random.key(seed), _TRAINING),
            seed=seed,
            sums=sums,
            num_test=len(test_y),
            again=of,
        )

    return of(seed)


@functools.lru_cache(maxsize=4)
def _taken(dataset: Dataset, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, read one by one and once: many federations are made of the same."""
    return dataset.take(np.arange(count))


def _read(
    dataset: Dataset, count: int | None, name: str, say: Callable[[str], None] | None
) -> tuple[np.ndarray, np.ndarray]:
    count = len(dataset) if count is None else count
    validate.integer_at_least(name, count, 1)
    if count > len(dataset):
        raise ValueError(f"{name}={count}: expected at most {len(dataset)}, split {dataset.split!r} of {dataset.name}")
    if say is not None and count > _MANY_IMAGES:
        say(f"reading {count:,} images of {dataset.name}, {dataset.split}")
    return _taken(dataset, count)


def _sums(chain: tuple[defending.Defense, ...], population: fl.Population) -> tuple[int, int] | None:
    """Of examples and of classes over clients, where a defense asks; refuses clients whose rate it makes negative."""
    asks = [part for part in chain if "mean_labels" in inspect.signature(defenses.NAMES[part.name]).parameters]
    if not asks:
        return None
    own = np.asarray(population.num_labels).tolist()
    examples, labels = fl.secure_sum.secure_sum([[n, k] for n, k in zip(population.sizes, own, strict=True)]).tolist()
    for client, num_labels in enumerate(own):
        about = {"num_labels": num_labels, "mean_labels": labels / len(own)}
        try:
            defending.transformation(tuple(asks), key=jax.random.key(0), loss_fn=None, **about)
        except ValueError as error:
            raise ValueError(f"client {client}: {error}") from error
    return examples, labels


def _refuse_examples_unseen(chain: tuple[defending.Defense, ...]) -> None:
    for part in chain:
        parameter = inspect.signature(defenses.NAMES[part.name]).parameters.get("loss_fn")
        if parameter is not None and parameter.default is inspect.Parameter.empty:
            raise ValueError(f"defended='update': {part.name} sees the examples of each local step: expected 'steps'")
