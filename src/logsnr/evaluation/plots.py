"""Plots for people, as pictures in memory: error curves, levels of a run."""

from __future__ import annotations

import io
import math
from statistics import fmean
from typing import Any

import matplotlib as mpl
from PIL import Image

from logsnr.information.profile import InformationProfile
from logsnr.schedules.schedule import Schedule, levels_at
from logsnr.solvers.explain import Explanation

mpl.use("agg")
from matplotlib import pyplot as plt

_INK, _SECOND = "#2b6cb0", "#c05621"


def picture(figure: Any) -> Image.Image:
    """A figure as a picture; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    return Image.open(buffer).convert("RGB")


def plot_information(profile: InformationProfile, title: str) -> Image.Image:
    """Noise error with and without the label, and where the label tells something, over log-SNR."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    curve, told = profile.curve, profile.conditional
    points, snr = curve.log_snr, [math.exp(value) for value in curve.log_snr]
    for name, shown, colour in (("without label", curve, _INK), ("with label", told, _SECOND)):
        if shown:
            scaled = [value * ratio / curve.dimension for value, ratio in zip(shown.mmse, snr, strict=True)]
            bars = [2 * value * ratio / curve.dimension for value, ratio in zip(shown.stderr, snr, strict=True)]
            left.errorbar(points, scaled, bars, color=colour, label=name, linewidth=1.2)
    left.set(xlabel="log-SNR", ylabel="error of the noise, per dimension", title=title)
    left.legend(frameon=False)
    if told and profile.mutual_information:
        gains = [0.5 * (a - b) * ratio for a, b, ratio in zip(curve.mmse, told.mmse, snr, strict=True)]
        right.plot(points, gains, color=_SECOND)
        found = profile.mutual_information
        right.set(title=f"information about the label: {found.value:.2f} ± {found.stderr:.2f} nats")
    right.axhline(0, color="0.8", linewidth=0.8)
    right.set(xlabel="log-SNR", ylabel="nats per unit of log-SNR")
    return picture(figure)


def plot_explanation(found: Explanation, schedule: Schedule, title: str) -> Image.Image:
    """The schedule's log-SNR over time with the visited levels, and the weights of every step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    line = levels_at(schedule, [i / 400 for i in range(1, 400)])
    left.plot([at.t for at in line], [at.log_snr for at in line], color="0.75", linewidth=1.2)
    visited = [at for at in found.levels if math.isfinite(at.log_snr)]
    left.plot([at.t for at in visited], [at.log_snr for at in visited], "o", color=_INK, markersize=4)
    left.set(xlabel="t", ylabel="log-SNR", title=title)
    steps = range(1, len(found.weights) + 1)
    right.plot(steps, [step.linear for step in found.weights], "s-", color="0.5", markersize=3, label="sample")
    for place in range(max(len(step.values) for step in found.weights)):
        values = [step.values[place] if place < len(step.values) else 0.0 for step in found.weights]
        name = "newest evaluation" if place == 0 else f"{place} before"
        right.plot(steps, values, "o-", markersize=3, label=name)
    if any(step.noise for step in found.weights):
        right.plot(steps, [step.noise for step in found.weights], "^-", color=_SECOND, markersize=3, label="noise")
    right.set(xlabel="step", ylabel="weight", title="weights")
    right.legend(frameon=False, fontsize=8)
    return picture(figure)


def plot_attack(values: dict[str, Any]) -> Image.Image:
    """The share of images that show the concept over an attack's budget, and that of its control."""
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for name, curve, colour in (
        (f"{values['target']}, edited model", values["curve"], _INK),
        (f"control: {values['unrelated']}, original model", values["control_curve"], _SECOND),
    ):
        axes.plot(*zip(*curve, strict=True), "o-", color=colour, markersize=4, label=name)
    axes.set(ylim=(-0.02, 1.02), xlabel="budget", ylabel=f"images judged to show {values['target']}")
    axes.set_title(values["protocol"]["attack"])
    axes.legend(frameon=False)
    return picture(figure)


def plot_atlas(values: dict[str, Any], labelled: int = 12) -> Image.Image:
    """How much each concept was hurt over its text distance to what was erased; those most hurt have their names."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for erased, colour, name in ((False, _INK, "kept"), (True, _SECOND, "erased")):
        rows = [row for row in values["concepts"] if row["erased"] == erased]
        points = [row["text_distance"] for row in rows], [row["damage"] for row in rows]
        axes.plot(*points, "o", color=colour, markersize=4, label=name)
    for row in values["concepts"][:labelled]:
        place = (row["text_distance"], row["damage"])
        axes.annotate(row["concept"] or "(empty)", place, xytext=(4, 2), textcoords="offset points", fontsize=7)
    axes.set(xlabel="text distance to the nearest target", ylabel="damage", yscale="log")
    axes.set_title(f"rank correlation among the kept: {values['spearman']:.2f}")
    axes.legend(frameon=False)
    return picture(figure)


def plot_differences(values: dict[str, Any]) -> Image.Image:
    """Boxes of raw data and of the differences at every level, with shares of outliers; and their fall over stages."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 4.2), width_ratios=(2, 2, 1))
    rows = values["levels"]
    names = ["pixels", "latents", *(f"{row['sigma']:.2g}" for row in rows)]
    for place, row in enumerate((values["pixels"], values["latents"], *rows)):
        middle.bar(place, 100 * row["suspected_share"], color=_INK)
        middle.bar(place, 100 * row["extreme_share"], bottom=100 * row["suspected_share"], color=_SECOND)
    left.bxp([_box(row) for row in rows], positions=range(2, len(names)), showfliers=False, manage_ticks=False)
    left.set(ylabel="difference of neighbouring levels", title=values["model"])
    left.set_yscale("symlog", linthresh=1e-3)
    middle.set(ylabel="% of elements", title="beyond 1.5 (blue) and 3 (brown) interquartile ranges")
    for axes, first in ((left, 2), (middle, 0)):
        axes.set_xticks(range(first, len(names)), names[first:], rotation=90, fontsize=7)
        axes.set_xlabel("noise of the student")
    stages = [row["intervals"] for row in values["stages"]]
    for name, label in (("rms", "root mean square"), ("scale", "the penalty's scale")):
        right.loglog(stages, [row[name] for row in values["stages"]], "o-", markersize=4, label=label)
    right.minorticks_off()
    right.set_xticks(stages, [str(stage) for stage in stages])
    right.set(xlabel="intervals", title=f"slope {values['slope']:.2f}, authors' fit {values['slope_of_fit']}")
    right.legend(frameon=False)
    return picture(figure)


def plot_replays(runs: dict[str, list[dict[str, Any]]]) -> Image.Image:
    """What replay is worth over the age of a class, the mean over classes, a line a run."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    figures = ("fidelity", "kernel_distance", "nearest_ratio")
    ages = sorted({row["age"] for rows in runs.values() for row in rows})
    for axes, name in zip(panels, figures, strict=True):
        for run, rows in runs.items():
            own = sorted({row["age"] for row in rows})
            means = [fmean([row[name] for row in rows if row["age"] == age]) for age in own]
            axes.plot(own, means, "o-", markersize=4, label=run)
        axes.set(xlabel="experiences since the class came", ylabel=name.replace("_", " "))
        axes.set_xticks(ages)
    floor = fmean([row["real_kernel_distance"] for rows in runs.values() for row in rows])
    panels[1].axhline(floor, color="0.7", linewidth=0.8, label="test images")
    panels[0].set_ylim(0, 1.02)
    panels[2].set_ylim(0, 1.05 * max(1.0, panels[2].dataLim.ymax))
    panels[1].legend(frameon=False, fontsize=8)
    return picture(figure)


def _box(row: dict[str, float]) -> dict[str, float]:
    """What matplotlib draws a box from, with the outer fences as whiskers."""
    reach = 3 * (row["q3"] - row["q1"])
    return {"q1": row["q1"], "med": row["median"], "q3": row["q3"]} | {
        "whislo": row["q1"] - reach,
        "whishi": row["q3"] + reach,
    }
