"""Cells in words: what each is, and what tells several apart."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxleak.experiments.words import plural

FIELDS = ("attack", "defense", "model", "dataset", "batch_size", "observation", "num_steps", "images", "seeds")


def fields(config: Mapping[str, Any]) -> dict[str, str]:
    """What a cell is, by field, in words.

    Args:
      config: of the cell.
    """
    settings = "".join(f" {name}={value}" for name, value in config["settings"].items())
    observation = " ".join(f"{name.removeprefix('local_')}={value}" for name, value in config["observation"].items())
    return {
        "attack": config["attack"] + settings,
        "defense": config["defense"] + (", informed" if config.get("informed") else ""),
        "model": config["model"],
        "dataset": config["dataset"],
        "batch_size": f"batch {config['batch_size']}",
        "observation": observation or "one gradient",
        "num_steps": plural(config["num_steps"], "step"),
        "images": plural(config["images"], "image"),
        "seeds": plural(config["seeds"], "seed"),
    }


def common(configs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What all cells have alike, by field; everything of a single one."""
    found = [fields(config) for config in configs]
    return {name: found[0][name] for name in FIELDS if found and all(one[name] == found[0][name] for one in found)}


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of cells by what differs between them; by attack and defense where nothing does.

    Steps are left out where each attack has a number of its own.
    """
    alike, found = common(configs), [fields(config) for config in configs]
    several = [name for name in FIELDS if name not in alike]
    if len({(one["attack"], one["num_steps"]) for one in found}) == len({one["attack"] for one in found}):
        several = [name for name in several if name != "num_steps"]
    return [", ".join(one[name] for name in several or ("attack", "defense")) for one in found]


def by_attack(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Where the cells of each attack are, with its settings and steps."""
    places: dict[str, list[int]] = {}
    for place, one in enumerate(map(fields, configs)):
        places.setdefault(f"{one['attack']}, {one['num_steps']}", []).append(place)
    return places
