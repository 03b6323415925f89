"""The objects of adversarial preservation (2410.15618) on real weights: erase some ImageNet classes, keep others.

    python benchmarks/full_scale/erasure.py --model MODEL --judge CLASSIFIER [--method eap] [--out DIR] [--dry-run]

500 images of every class by "Image of NAME", 100 DDIM steps at guidance 7.5, the same seeds before and after, judged by
an image classifier of 1,000 classes in the format of transformers, such as a ResNet-50. It needs a GPU for days of the
paper's tables and is run here on tiny random models only: no figure of it stands in this repository.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

import logsnr
from logsnr.core.artifact import write_json
from logsnr.erasure.config import CandidateConfig, preset
from logsnr.evaluation.erasure import Judged, erasure_figures
from logsnr.models.pipeline import Pipeline
from logsnr.solvers.config import SampleConfig

ERASED = ("cassette player", "church", "garbage truck", "parachute", "French horn")
KEPT = ("tench", "English springer", "chain saw", "gas pump", "golf ball")


class Classifier:
    """An image classifier of transformers; classes are found by any of the names in its labels."""

    def __init__(self, place: str):
        self.model: Any = AutoModelForImageClassification.from_pretrained(place).eval()
        self.processor = AutoImageProcessor.from_pretrained(place, use_fast=False)
        self.names = [self.model.config.id2label[label] for label in range(self.model.config.num_labels)]

    def labels(self, wanted: Sequence[str]) -> list[int]:
        """The classes of these names."""
        known = {name.strip().lower(): label for label, names in enumerate(self.names) for name in names.split(",")}
        if missing := [name for name in wanted if name.lower() not in known]:
            raise SystemExit(f"the classifier knows no {missing[0]!r}: use one that was trained on ImageNet")
        return [known[name.lower()] for name in wanted]

    @torch.no_grad()
    def judged(self, images: Tensor, labels: Tensor) -> Judged:
        """Its word on images (n, 3, height, width) in [-1, 1]."""
        shown = [
            ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy() for image in images
        ]
        given = self.processor(shown, return_tensors="pt").to(self.model.device)
        output = self.model(**given, output_hidden_states=True)
        return Judged(output.hidden_states[-1].flatten(2).mean(2).cpu(), output.logits.cpu(), labels)


def judge_all(pipe: Pipeline, classifier: Classifier, classes: Sequence[str], options: argparse.Namespace) -> Judged:
    """Every class in images of the same seeds, judged batch by batch, so that none is kept."""
    config, parts = SampleConfig(steps=options.steps, guidance_scale=options.guidance_scale, order=1), []
    for name, label in zip(classes, classifier.labels(classes), strict=True):
        for first in range(0, options.num_images, options.batch_size):
            seeds = range(first, min(first + options.batch_size, options.num_images))
            made = logsnr.sample(pipe, [f"Image of {name}"] * len(seeds), seeds=seeds, config=config)
            images = made.images.expand(-1, 3, -1, -1) if made.images.shape[1] == 1 else made.images
            parts.append(classifier.judged(images, torch.full((len(seeds),), label)))
    return Judged(*(torch.cat([getattr(part, field) for part in parts]) for field in ("features", "logits", "labels")))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Before, the erasure, and after."""
    if options.dry_run:
        options.num_images, options.steps, options.batch_size, options.train_steps = 2, 2, 2, 1
    pipe, classifier = logsnr.load(options.model), Classifier(options.judge)
    pipe.to(options.device)
    classifier.model.to(options.device)
    classes = (*options.erased, *options.kept)
    config = preset(options.method, *options.erased)
    if options.vocabulary:
        config = replace(config, candidates=CandidateConfig(options.vocabulary))
    if options.train_steps:
        config = replace(config, run=replace(config.run, steps=options.train_steps))
    before = judge_all(pipe, classifier, classes, options)
    delta = logsnr.erase(pipe, config=config)
    delta.apply(pipe)
    after = judge_all(pipe, classifier, classes, options)
    figures = erasure_figures(before, after, classifier.labels(options.erased), classifier.names)
    protocol = {**vars(options), "vocabulary": str(options.vocabulary or ""), "out": str(options.out or "")}
    values = {**figures, "config": delta.record.config, "cost": delta.record.metrics, "protocol": protocol}
    if options.out and not options.dry_run:
        delta.save_pretrained(options.out / "delta")
        write_json(options.out / "result.json", values)
    return values


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a diffusers folder, a .safetensors file or a hub id")
    parser.add_argument(
        "--judge", required=True, help="a folder or hub id of an image classifier in transformers' format"
    )
    parser.add_argument("--method", default="eap", help="a preset of logsnr erase; eap-paper is as released")
    parser.add_argument("--erased", nargs="+", default=list(ERASED))
    parser.add_argument("--kept", nargs="+", default=list(KEPT))
    parser.add_argument("--vocabulary", type=Path, help="a text file of candidates, one a line, such as common words")
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--train-steps", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="two images a class and one step of training")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    found = run(parse())
    print({name: found[name] for name in ("esr1", "esr5", "psr1", "psr5", "relative_esr1", "relative_psr1")})
