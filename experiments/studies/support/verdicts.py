"""What the rows of a leakage study come to: which strength stops which attack, and which claims of papers hold.

A defense stops an attack if the median SSIM of the best seeds by loss is below `STOPPED`, the value that
papers/gradient_dropout §IV-A calls protected; it leaks otherwise. It leaves artefacts if it leaks, but the 95 %
interval of its SSIM is below that without a defense. Of an attack that does not get that far without a defense either,
nothing can be said.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxleak.experiments import defending

STOPPED = 0.2
OUTCOMES = ("leaks", "artefacts", "stopped")
# Of these settings, the smaller one is the stronger.
_FALLING = ("keep", "max_norm", "bits")
_BITS = {"mixed": 12.0}

Cells = Mapping[tuple[str, str, bool], Mapping[str, Any]]


class Claim(NamedTuple):
    """What a paper says of a defense.

    Attributes:
      defense: with its strength, as a text.
      outcome: one of `OUTCOMES`.
      attacks: of which the strongest decides.
      dataset: of which it is said, or None for any.
    """

    defense: str
    outcome: str
    attacks: tuple[str, ...]
    dataset: str | None = None


def verdicts(rows: Sequence[Mapping[str, Any]], dataset: str, claims: Sequence[Claim] = ()) -> Iterator[dict[str, Any]]:
    """What the rows of a data set come to.

    Args:
      rows: of the study.
      dataset: by its name.
      claims: to be judged.

    Yields:
      For each defense the SSIM of each attack, plain and informed, and whether it stops the strongest of them; for
      each family and attack the weakest strength that stops it; for each claim whether it holds. None where a cell is
      not there, or where the attack does not work without a defense either.
    """
    cells = {(r["defense"], r["attack"], r["informed"]): r for r in rows if r["dataset"] == dataset}
    texts = list(dict.fromkeys(text for text, _, _ in cells))
    attacks = list(dict.fromkeys(attack for _, attack, _ in cells))
    for text in texts:
        ssim = {
            attack: {
                "informed" if informed else "plain": cells[text, attack, informed]["ssim_median"]
                for informed in (False, True)
                if (text, attack, informed) in cells
            }
            for attack in attacks
        }
        none = strongest(cells, "none", attacks, (False,))
        plain, informed = (_held("stopped", strongest(cells, text, attacks, (kind,)), none) for kind in (False, True))
        yield {
            "verdict": "defense",
            "dataset": dataset,
            "defense": text,
            "ssim": ssim,
            "stops_plain": plain,
            "stops_informed": informed,
            "broken_by_informed": None if plain is None or informed is None else plain and not informed,
        }
    for family in dict.fromkeys(text.partition(":")[0] for text in texts if text != "none"):
        own = sorted((text for text in texts if text.partition(":")[0] == family), key=strength)
        for attack in attacks:
            none = cells.get(("none", attack, False))
            found = {
                who: next((t for t in own if _held("stopped", cells.get((t, attack, who == "informed")), none)), None)
                for who in ("plain", "informed")
            }
            works = none is not None and not _below(none)
            yield {
                "verdict": "weakest",
                "dataset": dataset,
                "defense": family,
                "attack": attack,
                "works": works,
                "stops": found,
            }
    for claim in claims:
        if claim.dataset in (None, dataset):
            none = strongest(cells, "none", claim.attacks, (False,))
            held = {
                who: _held(claim.outcome, strongest(cells, claim.defense, claim.attacks, kinds), none)
                for who, kinds in (("plain", (False,)), ("all", (False, True)))
            }
            yield {
                "verdict": "claim",
                "dataset": dataset,
                "defense": claim.defense,
                "claim": claim.outcome,
                "attacks": list(claim.attacks),
                "held": held,
            }


def strongest(
    cells: Cells, text: str, attacks: Sequence[str], kinds: Sequence[bool], metric: str = "ssim"
) -> Mapping[str, Any] | None:
    """The row of the largest median over attackers, as an auditor reports the worst case.

    Args:
      cells: rows by defense, attack, and whether the attacker knows the defense.
      text: of the defense.
      attacks: all of which have to be there.
      kinds: of attackers.
      metric: ssim or psnr.

    Returns:
      A row, or None where an attack has none.
    """
    found = [cells[text, attack, kind] for attack in attacks for kind in kinds if (text, attack, kind) in cells]
    found = [row for row in found if row[f"{metric}_median"] is not None]
    if {row["attack"] for row in found} != set(attacks):
        return None
    return max(found, key=lambda row: row[f"{metric}_median"])


def _below(row: Mapping[str, Any]) -> bool:
    # An SSIM that there is not, of images below its window, is that of no reconstruction either.
    return row["ssim_median"] is None or row["ssim_median"] < STOPPED


def _held(outcome: str, row: Mapping[str, Any] | None, none: Mapping[str, Any] | None) -> bool | None:
    if row is None or none is None or _below(none):
        return None
    if outcome == "artefacts":
        return not _below(row) and row["ssim_interval"][1] < none["ssim_interval"][0]
    return _below(row) == (outcome == "stopped")


def strength(text: str) -> tuple[float, ...]:
    """A key that sorts defenses of one family, weak ones first."""
    found = []
    for _, settings in defending.parse(text):
        for name, value in settings.items():
            number = _BITS[value] if isinstance(value, str) else float(value)
            found.append(-number if name in _FALLING else number)
    return tuple(found)


def described(verdict: Mapping[str, Any]) -> str:
    """One line of a verdict for a person."""
    start = f"{verdict['dataset']}, {verdict['defense']}"
    if verdict["verdict"] == "claim":
        words = {True: "held", False: "not held", None: "not known"}
        held = ", ".join(f"{words[value]} by {who} attackers" for who, value in verdict["held"].items())
        return f"claim: {start} {verdict['claim']}: {held}"
    if verdict["verdict"] == "weakest":
        if not verdict["works"]:
            return f"weakest: {start} against {verdict['attack']}: not known, it fails without a defense"
        return f"weakest: {start} against {verdict['attack']}: " + ", ".join(
            f"{who} {text or 'none of them'}" for who, text in verdict["stops"].items()
        )
    ssim = "; ".join(
        f"{attack} " + ", ".join(f"{who} {value}" for who, value in found.items())
        for attack, found in verdict["ssim"].items()
    )
    return f"{start}: SSIM {ssim}" + ("; broken by who knows it" if verdict["broken_by_informed"] else "")
