"""``logsnr information``: likelihood, error curve and what a label tells, with error bars and a plot."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from logsnr.cli.console import Console, Model, check_writable
from logsnr.information.config import InformationConfig


@dataclass(frozen=True, kw_only=True)
class Information(Console):
    """Measure what a model knows about data: error over log-SNR, bits per dimension, information about the label."""

    model: Model
    """An embedded world (fashion, emoji), or a folder that `train` made."""
    data: Literal["fashion", "emoji"] = "fashion"
    """The data set: test images are measured, the Gaussian reference is fitted to training images."""
    information: Annotated[InformationConfig, tyro.conf.arg(name="")] = field(default_factory=InformationConfig)
    out: Path = Path("out")
    """Folder of information.json and information.png."""

    def run(self) -> int:
        from logsnr.core.artifact import write_json
        from logsnr.evaluation.plots import plot_information
        from logsnr.train.preview import save_picture

        check_writable(self.out)
        start = time.monotonic()
        profile, values = self._measure()
        plot = save_picture(plot_information(profile, self.model), self.out / "information.png")
        values |= {"seconds": round(time.monotonic() - start, 1), "plot": str(plot)}
        write_json(self.out / "information.json", values)
        self.result(values, _lines(values))
        return 0

    def _measure(self) -> tuple[Any, dict[str, Any]]:
        import torch
        from tqdm.auto import tqdm

        from logsnr.evaluation.information import describe, information_values, pipeline_information
        from logsnr.worlds.data import SOURCES
        from logsnr.worlds.load import load, load_world

        world, source = load_world(self.model), SOURCES[self.data]
        train, test = source.measuring()
        profile = pipeline_information(
            load(self.model),
            train,
            test,
            lambda label: world.captions.prompt(label, 0, held_out=True),
            self.information,
            lambda work: tqdm(work, desc="batches", disable=self.quiet),
        )
        shares = test.labels.bincount().double() / len(test)
        entropy = float(torch.special.entr(shares).sum())
        protocol = describe(self.information, model=self.model, data=f"{source.describe()} test images")
        return profile, {**information_values(profile), "label_entropy": entropy, "protocol": protocol}


def _lines(values: dict[str, Any]) -> list[str]:
    low, high = values["log_snr_range"]
    label, entropy = values["mutual_information"], values["label_entropy"]
    ode = []
    if "nats_ode" in values:
        bits = f"{values['bits_per_dim_ode']:.4f} +- {values['bits_per_dim_ode_stderr']:.4f} bits per latent dimension"
        ode = [f"by the probability-flow ODE, with the noise of the range's clean end: {bits}"]
    excess = ": the excess is the unlabelled prediction's own error" if label > entropy else ""
    return [
        f"{values['bits_per_dim']:.4f} +- {values['bits_per_dim_stderr']:.4f} bits per latent dimension "
        f"({values['nats']:.1f} +- {values['nats_stderr']:.1f} nats in {values['dimensions']} dimensions)",
        f"{label:.3f} +- {values['mutual_information_stderr']:.3f} nats about the label, whose entropy is "
        f"{entropy:.3f}{excess}",
        *ode,
        f"{values['convention']}",
        f"trained range of log-SNR {low:.2f} to {high:.2f}; the reference's tails outside it supply "
        f"{values['reference_tail_nats_per_dim']:.3f} nats per dimension",
        f"{values['samples']} samples, {values['network_calls']} network calls, {values['seconds']} s",
        values["plot"],
    ]
