"""Results of solvers.py, frechet.py, gradient_peer.py and overhead.py, put together: headlines, table and picture.

python benchmarks/solvers_report.py writes results/solvers.json and the pictures solvers.png and fashion-rho.png of the
docs from results/solvers/.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from record import RESULTS, headline, write_result
from solvers import CALLS, FINE, NUM_SELECTION, NUM_TEST, SEEDS

IMAGES = Path(__file__).parent.parent / "docs" / "images"
GOALS = {5: 0.5, 8: 0.5, 10: 0.5, 20: 1.0}
SHOWN = ("DPM++2M", "UniPC 3", "UniPC 3, own grid", "ours, default", "ours, calibrated quickly", "ours, calibrated")


def parts() -> dict[str, dict[str, Any]]:
    """Every result by its file's name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((RESULTS / "solvers").glob("*.json"))}


def errors(found: dict[str, Any], calls: int) -> dict[str, float]:
    """Mean errors on the trained network, by method."""
    return {row["method"]: row["mean"] for row in found[f"fashion-{calls}"]["rows"]}


def headlines(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Every headline whose part has been run."""
    made = []
    for calls, goal in GOALS.items():
        if f"fashion-{calls}" in found:
            _, value, low, high = found[f"fashion-{calls}"]["ratios"]["ours, calibrated / best peer, mean"]
            made.append(headline(f"calibrated_error_ratio_nfe{calls}", value, goal, "<=", (low, high)))
    for calls in (10, 20):
        if f"fashion-{calls}" in found:
            _, value, low, high = found[f"fashion-{calls}"]["ratios"]["ours, default / best peer, mean"]
            made.append(headline(f"default_error_ratio_nfe{calls}", value, 1.0, "<=", (low, high)))
    for calls in (5, 8):
        if f"fashion-frechet-{calls}" in found:
            ratios = found[f"fashion-frechet-{calls}"]["ratios"]
            for name, method in (("frechet_ratio", "matched"), ("frechet_ratio_without_real_images", "calibrated")):
                _, value, low, high = ratios[f"ours, {method}"]
                made.append(headline(f"{name}_nfe{calls}", value, 0.9, "<=", (low, high)))
    spent = {calls: quick(found, calls) for calls in CALLS if f"fashion-{calls}" in found}
    if spent:
        most = max(evaluations for evaluations, _ in spent.values())
        made.append(headline("calibration_evaluations", most, 3000, "<="))
    made += [
        headline(f"calibration_loss_of_gain_nfe{calls}", spent[calls][1], 0.2, "<=")
        for calls in (5, 8, 10)
        if calls in spent
    ]
    if "overhead" in found:
        made.append(headline("overhead_ratio", overhead(found["overhead"]["rows"]), 0.25, "<="))
    return made


def quick(found: dict[str, Any], calls: int) -> tuple[int, float]:
    """Evaluations of the quick calibration, and the share of the gain over our analytic solvers that it loses."""
    row = next(r for r in found[f"fashion-{calls}"]["rows"] if r["method"] == "ours, calibrated quickly")
    mean = errors(found, calls)
    before = min(value for name, value in mean.items() if name.startswith("ours, order") or name == "ours, default")
    gain = before - mean["ours, calibrated"]
    return max(row["network_evaluations"]), (row["mean"] - mean["ours, calibrated"]) / gain


def overhead(rows: list[dict[str, Any]]) -> float:
    """Our step over DPMSolverMultistepScheduler's, at the worse of the shapes."""
    ours = [row["microseconds"] for row in rows if row["scheduler"] == "ours, order 2"]
    theirs = [row["microseconds"] for row in rows if row["scheduler"] == "DPMSolverMultistepScheduler"]
    return max(a / b for a, b in zip(ours, theirs, strict=True))


def picture(found: dict[str, Any]) -> None:
    """Mean error against calls on the trained network."""
    mpl.use("agg")
    from matplotlib import pyplot

    counts = [calls for calls in CALLS if f"fashion-{calls}" in found]
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name in SHOWN:
        values = [errors(found, calls).get(name) for calls in counts]
        axes.plot(counts, values, marker="o", linewidth=2 if name.startswith("ours") else 1, label=name)
    axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="error / deviation of the data")
    axes.set_xticks(counts, [str(calls) for calls in counts])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(IMAGES / "solvers.png", dpi=120)


def picture_of_rho(found: dict[str, Any]) -> None:
    """Frechet distance against rho at each number of calls."""
    from matplotlib import pyplot

    rows = found["fashion-rho"]["rows"]
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for calls in sorted({row["calls"] for row in rows}):
        shown = [row for row in rows if row["calls"] == calls]
        points, values = ([row[name] for row in shown] for name in ("rho", "frechet_distance"))
        axes.plot(points, values, marker="o", label=f"{calls} evaluations")
    axes.set(ylim=(0, None), xlabel="rho", ylabel="Frechet distance")
    axes.legend()
    figure.savefig(IMAGES / "fashion-rho.png", dpi=120)


def main() -> None:
    found = parts()
    rows = [row for name, part in found.items() for row in part["rows"] if name != "overhead"]
    ratios = {name: part["ratios"] for name, part in found.items() if "ratios" in part}
    protocol = {
        "name": "solvers",
        "error": "root mean square distance to the fine solution from the same noise, over the data's deviation",
        "tested_on": f"{NUM_TEST} noises for each of seeds {list(SEEDS)}; fine solution: order 3, {FINE} steps",
        "chosen_on": f"{NUM_SELECTION} further noises: each peer's best grid, and where it has one its searched grid",
        "ours, default": "order 3 with the corrector on log-snr-early, as the docs advise; it is not what sample does "
        "unasked, which is DPM++2M on the levels of the model's own scheduler",
        "intervals": "95 %, bootstrap over seeds, then noises, paired",
        "loss_of_gain": "share of the gain over our best solver without calibration that the quick one loses",
        "frechet": "second judge's features of 5,000 images to those of the 60,000 real training images; `matched` and "
        "the peers' `grid by distance` were chosen on other noises by the first judge's features of real images, the "
        "other rows without any; ratios are to the best row of the three schedulers; intervals over images, one "
        "calibration; at 8 neither UniPC 3's grid by distance nor the fine solution was run",
        "gradient-trained": "the same numbers by Adam through the network, and ours at two prices on the same noises",
        "rho": "order 2 midpoint on the levels of the model's own scheduler, no guidance, first 2,000 test seeds",
        "mixtures": "exact denoisers under EDM's schedule, float64",
    }
    best_rho = found["fashion-rho"]["best_rho"] if "fashion-rho" in found else {}
    write_result("solvers", protocol, [*rows, {"ratios": ratios, "best_rho": best_rho}], headlines(found))
    picture(found)
    if best_rho:
        picture_of_rho(found)


if __name__ == "__main__":
    main()
