"""The hypotheses of erasure_hypotheses.md that `fashion` answers, each with its tests and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from erasure_runs import Array, Drawn, Run, kept_at, pairs, resampled

LEVEL, REGIME, ALPHA = 0.95, "informed", 0.05
REGISTERED = 9
"""Hypotheses, all of which Holm's method counts."""
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


CLAIMS: dict[str, tuple[Claim, ...]] = {
    "H1": (Claim("EAP", "ESD"), Claim("EAP", "UCE, empty prompt"), Claim("EAP", "CA", -2.0)),
    "H2": (Claim("EAP", "ESD", measure=worst_beyond_mean),),
    "H3": (Claim("ESD, preserve nearest", "ESD, preserve"), Claim("ESD, preserve", "ESD")),
    "H9": (
        Claim("EAP, projected", "ESD"),
        Claim("EAP, projected", "ESD + x0"),
        Claim("EAP, projected", "UCE", -1.0),
        Claim("EAP, projected", "CA", -1.0),
    ),
}


def verdicts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each hypothesis whose arms were run, with the p-value that Holm's method leaves of its weakest test.

    Of those that are about both worlds it is `fashion`'s half.
    """
    found = [row for name, claims in CLAIMS.items() if (row := _tested(runs, name, claims))]
    order = sorted(range(len(found)), key=lambda place: found[place]["p"])
    least = 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, found[place]["p"] * (REGISTERED - rank)))
        found[place]["p_holm"] = least
        refuted = any(test["high"] < test["margin"] for test in found[place]["tests"])
        found[place]["verdict"] = "supported" if least < ALPHA else "not supported" if refuted else "inconclusive"
    return found + _share_of_the_gap(runs)


def _tested(runs: Sequence[Run], name: str, claims: Sequence[Claim]) -> dict[str, Any] | None:
    tests = []
    for claim in claims:
        matched = pairs(runs, claim.first, claim.second, REGIME)
        value, draws = resampled(matched, claim.measure) if matched else (float("nan"), np.array([np.nan]))
        if np.isnan(value):
            return None
        tests.append(_test(claim, value, draws[np.isfinite(draws)], len(matched)))
    return {"hypothesis": name, "world": "fashion", "p": max(test["p"] for test in tests), "tests": tests}


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
    of = {(run.arm, run.split, run.seed): kept(run, None) for run in runs if run.regime == REGIME}
    tasks = sorted({(split, seed) for _, split, seed in of})
    rows = [[of.get((arm, *task), np.nan) for arm in arms] for task in tasks]
    whole = np.array([row for row in rows if np.isfinite(row).all()])
    if not len(whole):
        return []
    plain, weighted, eap = (float(value) for value in whole.mean(0))
    share = (weighted - plain) / (eap - plain) if eap != plain else None
    return [{"hypothesis": "H7", "share_of_the_gap": share, "runs": len(whole), "verdict": "reported"}]
