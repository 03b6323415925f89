"""The hypotheses of erasure_hypotheses.md, each with its tests and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from erasure_runs import RESAMPLES, Array, Drawn, Run, kept_at, pairs, resampled

LEVEL, REGIME, ALPHA = 0.95, "informed", 0.05
REGISTERED = 12
"""Verdicts, all of which Holm's method counts: those about both worlds are two."""
Measure = Callable[[Run, Drawn | None], float]


def kept(run: Run, drawn: Drawn | None) -> float:
    """Relative PSR at the level, in points."""
    return 100 * kept_at(run, LEVEL, drawn)


def worst_beyond_mean(run: Run, drawn: Drawn | None) -> float:
    """How far the worst kept class is above the mean, in points."""
    return 100 * (kept_at(run, LEVEL, drawn, worst=True) - kept_at(run, LEVEL, drawn))


@dataclass(frozen=True)
class Claim:
    """The first arm's measure is above the second's by more than the margin."""

    first: str
    second: str
    margin: float = 0.0
    measure: Measure = kept


BOTH = ("fashion", "emoji")
CLAIMS: dict[str, tuple[tuple[str, ...], tuple[Claim, ...]]] = {
    "H1": (BOTH, (Claim("EAP", "ESD"), Claim("EAP", "UCE, empty prompt"), Claim("EAP", "CA", -2.0))),
    "H2": (BOTH, (Claim("EAP", "ESD", measure=worst_beyond_mean),)),
    "H3": (BOTH, (Claim("ESD, preserve nearest", "ESD, preserve"), Claim("ESD, preserve", "ESD"))),
    "H5": (("emoji",), (Claim("EAP", "EAP, random"), Claim("EAP, random", "EAP, fixed empty prompt"))),
    "H8": (
        ("emoji",),
        (Claim("EAP", "EAP, as released", -1.0), Claim("EAP, exhaustive", "EAP, as released", -1.0)),
    ),
    "H9": (
        ("fashion",),
        (
            Claim("EAP, projected", "ESD"),
            Claim("EAP, projected", "ESD + x0"),
            Claim("EAP, projected", "UCE", -1.0),
            Claim("EAP, projected", "CA", -1.0),
        ),
    ),
}
"""The worlds and the claims of each hypothesis that compares arms; it holds where all its claims do."""
STEPS = ("EAP, 2 steps", "EAP, 4 steps", "EAP, 8 steps")
CENTERS = ("EAP, 20 centers", "EAP, 50 centers", "EAP", "EAP, 200 centers")


def verdicts(runs: Sequence[Run], atlases: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """A row for each hypothesis and world whose arms were run, with the p-value that Holm's method leaves of it."""
    asked = [(name, world, claims) for name, (worlds, claims) in CLAIMS.items() for world in worlds]
    found = [row for name, world, claims in asked if (row := _tested(runs, name, world, claims))]
    if atlases:
        found.append(_near_is_hurt(atlases))
    order = sorted(range(len(found)), key=lambda place: found[place]["p"])
    least = 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, found[place]["p"] * (REGISTERED - rank)))
        found[place]["p_holm"] = least
        holds = least < ALPHA and found[place].pop("and", True)
        refuted = any(test["high"] < test["margin"] for test in found[place]["tests"])
        found[place]["verdict"] = "supported" if holds else "not supported" if refuted else "inconclusive"
    return found + _share_of_the_gap(runs) + _saturation(runs)


def _tested(runs: Sequence[Run], name: str, world: str, claims: Sequence[Claim]) -> dict[str, Any] | None:
    tests = []
    for claim in claims:
        matched = pairs(runs, claim.first, claim.second, REGIME, world)
        value, draws = resampled(matched, claim.measure) if matched else (float("nan"), np.array([np.nan]))
        if np.isnan(value):
            return None
        reached = [bool(np.isfinite([kept(run, None) for run in pair]).all()) for pair in matched]
        tests.append({**_test(claim, value, draws[np.isfinite(draws)], len(matched)), "both_reached": sum(reached)})
    return {"hypothesis": name, "world": world, "p": max(test["p"] for test in tests), "tests": tests}


def _test(claim: Claim, value: float, draws: Array, num_runs: int) -> dict[str, Any]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return {
        "claim": f"{claim.first} - {claim.second}",
        "measure": claim.measure.__name__,
        "runs": num_runs,
        "margin": claim.margin,
        "value": value,
        "low": float(low),
        "high": float(high),
        "p": (1 + int((draws <= claim.margin).sum())) / (1 + len(draws)),
    }


def _share_of_the_gap(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """H7: how much of the gap between ESD and EAP the weighing by clean data closes, on tasks that all three have."""
    arms = ("ESD", "ESD + x0", "EAP")
    mine = [run for run in runs if (run.world, run.regime) == ("fashion", REGIME)]
    of = {(run.arm, run.split, run.seed): kept(run, None) for run in mine}
    tasks = sorted({(split, seed) for _, split, seed in of})
    rows = [[of.get((arm, *task), np.nan) for arm in arms] for task in tasks]
    whole = np.array([row for row in rows if np.isfinite(row).all()])
    if not len(whole):
        return []
    plain, weighted, eap = (float(value) for value in whole.mean(0))
    share = (weighted - plain) / (eap - plain) if eap != plain else None
    return [{"hypothesis": "H7", "share_of_the_gap": share, "runs": len(whole), "verdict": "reported"}]


def _near_is_hurt(atlases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """H4: over several erasures, damage falls with text distance, and the empty prompt's is in the middle half."""
    ranks = np.array([row["spearman"] for row in atlases])
    places = [row["empty_prompt_percentile"] for row in atlases]
    drawn = np.random.default_rng(0).choice(ranks, (RESAMPLES, len(ranks))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    test = {"claim": "rank correlation below 0", "margin": 0.0, "value": -float(ranks.mean())}
    test |= {"low": -float(high), "high": -float(low), "runs": len(ranks)}
    middle = 0.25 <= float(np.median(places)) <= 0.75
    row = {"hypothesis": "H4", "world": "emoji", "p": (1 + int((drawn >= 0).sum())) / (1 + len(drawn))}
    return {**row, "tests": [test], "empty_prompt_percentile": places, "and": middle}


def _saturation(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """H6: what the last doubling of the adversary's steps, and of its candidates, adds over what the first does."""
    mine = [run for run in runs if (run.world, run.regime) == ("emoji", REGIME)]
    means = {arm: [kept(run, None) for run in mine if run.arm == arm] for arm in (*STEPS, *CENTERS)}
    if not all(means.values()):
        return []
    steps, centers = ([float(np.nanmean(means[arm])) for arm in arms] for arms in (STEPS, CENTERS))
    firsts, lasts = (steps[1] - steps[0], centers[1] - centers[0]), (steps[-1] - steps[-2], centers[-1] - centers[-2])
    row = {"hypothesis": "H6", "world": "emoji", "kept_by_steps": steps, "kept_by_centers": centers}
    gained = all(first > 0 for first in firsts)
    saturated = all(last < first / 4 for first, last in zip(firsts, lasts, strict=True))
    return [{**row, "verdict": "inconclusive" if not gained else "supported" if saturated else "not supported"}]
