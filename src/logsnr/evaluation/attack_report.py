"""What an attack on an edit reached, for people: the curve beside its control, the prompts, and what is not proven."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from logsnr.core.artifact import write_file
from logsnr.evaluation.report import Figure, Section, render

_NOT_PROVEN = """This is one attack at one budget, with these reference images and seeds. That it fails does not say \
that others do, or that the same one does with more of either; that it succeeds says nothing about the edit where its \
control succeeds too. Whoever has the weights and enough images of the concept can train it anew."""


def write_attack_report(folder: Path, values: dict[str, Any], plot: Image.Image) -> None:
    """Write report.html to a folder, from the values that `logsnr attack` prints and the picture of their curve."""
    protocol, (low, high) = values["protocol"], values["success_interval"]
    excess = values["success_rate"] - values["control_rate"]
    summary = (
        f"{values['success_rate']:.1%} of the images show {values['target']} at the best budget (95 % interval "
        f"{low:.1%} to {high:.1%}). The same attack on the original model, asked for {values['unrelated']}, reaches "
        f"{values['control_rate']:.1%}: what the edit does not hold is the difference, {excess:+.1%}."
    )
    curves = dict(values["curve"]), dict(values["control_curve"])
    budgets = sorted({at for curve in curves for at in curve})
    table = [("budget", "edited", "control"), *((f"{at:g}", *(_share(c.get(at)) for c in curves)) for at in budgets)]
    sections = [Section("What it reached", summary, [Figure(plot, "Shares of images, over the budget.")], table)]
    if values["prompts"]:
        found = [("place", "prompt"), *((str(place), text) for place, text in enumerate(values["prompts"]))]
        sections.append(Section("The prompts that it found", "One for each try, also of those that failed.", (), found))
    sections.append(Section("What is not proven", _NOT_PROVEN))
    lead = f"{protocol['model']}, {values['network_evaluations']:,} network evaluations, seed {protocol['seed']}"
    write_file(folder / "report.html", render(f"{protocol['attack']} on {values['target']}", lead, sections))


def _share(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.3f}"
