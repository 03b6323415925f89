"""Measure likelihood and the information about a label where both are known: a mixture with its exact denoiser.

``python examples/information.py [OUT]`` prints measured and true values and writes OUT/information.png. A network of
your own takes the place of the mixture as a ``NetworkDenoiser``; for a pipeline with its data there is
``logsnr information MODEL``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

import logsnr
from logsnr.core.types import Prediction
from logsnr.data.mixture import GaussianMixture
from logsnr.evaluation.plots import plot_information
from logsnr.information.reference import fit_gaussian
from logsnr.models.denoiser import Conditioning
from logsnr.schedules.families import LinearLogSNR
from logsnr.train.preview import save_picture

RANGE = (-12.0, 18.0)


class Known:
    """The exact denoiser of three Gaussians in four dimensions, and of one of them where its label is told."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.means, self.variances = 0.8 * torch.randn(3, 4).double(), 0.2 * torch.rand(3, 4).double() + 0.01
        self.whole = GaussianMixture(torch.full((3,), 1 / 3, dtype=torch.float64), self.means, self.variances)
        one, rows = torch.ones(1, dtype=torch.float64), zip(self.means, self.variances, strict=True)
        self.parts = [GaussianMixture(one, mean[None], variance[None]) for mean, variance in rows]

    def __call__(self, xt: Tensor, level: logsnr.Level, cond: Conditioning) -> Prediction:
        labels = cond.values["label"]
        if labels[0] < 0:
            return self.whole(xt, level)
        found = [part(xt, level) for part in self.parts]
        rows = torch.arange(len(xt))
        x0, eps = torch.stack([each.x0 for each in found]), torch.stack([each.eps for each in found])
        return Prediction(x0[labels, rows], eps[labels, rows])

    def sample(self, labels: Tensor) -> Tensor:
        return self.means[labels] + self.variances[labels].sqrt() * torch.randn(len(labels), 4).double()


def main(out: Path) -> None:
    """Measure, compare with the truth, and draw."""
    known = Known()
    labels = torch.randint(3, (16_000,))
    data, others = known.sample(labels), known.sample(torch.randint(3, (16_000,)))
    cond = Conditioning({"label": labels}, unconditional={"label": torch.full_like(labels, -1)})
    config = logsnr.InformationConfig(calls=800, batch_size=4000, curve_batches=4, levels=60)
    schedule, reference = LinearLogSNR(RANGE[1], RANGE[0]), fit_gaussian(others)
    profile = logsnr.information_profile(
        known, data, schedule, reference, cond=cond, log_snr_range=RANGE, config=config
    )
    shown, told = data[: len(profile.nll)], labels[: len(profile.nll)]
    truth = -known.whole.log_prob(shown)
    given = -torch.stack([part.log_prob(shown) for part in known.parts])[told, torch.arange(len(told))]
    for name, found, true in (
        ("-log p(x)", profile.negative_log_likelihood, truth),
        ("information about the label", profile.mutual_information, truth - given),
    ):
        print(f"{name}: measured {found.value:.4f} +- {found.stderr:.4f} nats, true {float(true.mean()):.4f}")
    bits = profile.bits_per_dim
    print(f"{bits.value:.4f} +- {bits.stderr:.4f} bits per dimension, in {profile.network_calls} calls")
    print(save_picture(plot_information(profile, "an exact mixture"), out / "information.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/information"))
