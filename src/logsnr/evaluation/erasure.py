"""The erasure protocol: is the target gone, is everything else still there, and what did an edited image become.

ESR-k is the share of erased concepts' images whose class is not among the judge's first k, PSR-k the share of kept
concepts' images whose class is. Relative figures divide a concept's accuracy by that of the model before the edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.data.captions import without_article
from logsnr.metrics.bounds import bootstrap_interval, clopper_pearson_upper, corrected_share
from logsnr.metrics.frechet import frechet_distance, moments
from logsnr.metrics.judge import Judge, judge_images

_KNOWN = 0.8
"""A concept enters the relative figures if the model drew it before the edit in at least this share of images."""
_ENOUGH = 50
"""Real images of a class by which a judge's rates on it are counted."""


@dataclass(frozen=True)
class Judged:
    """What a judge says of images (n): the features (n, d), the logits (n, classes), and the classes asked for (n,)."""

    features: Tensor
    logits: Tensor
    labels: Tensor

    def hits(self, k: int) -> Tensor:
        """Whether the class that was asked for is among the first k (n,)."""
        return (self.logits.topk(min(k, self.logits.shape[1]), 1).indices == self.labels[:, None]).any(1)

    @property
    def confidence(self) -> Tensor:
        """The chance (n,) that the judge gives its first class, whichever it is."""
        return self.logits.softmax(1).amax(1)

    def rows(self, keep: Tensor) -> Judged:
        """The images that ``keep`` (n,) marks."""
        return Judged(self.features[keep], self.logits[keep], self.labels[keep])


def class_labels(targets: Sequence[str], names: Sequence[Sequence[str]]) -> list[int]:
    """The classes that targets name, by any of their names, with or without an article.

    Raises:
        InputError: a target names none.
    """
    places = {without_article(name.lower()): label for label, synonyms in enumerate(names) for name in synonyms}
    found = {target: places.get(without_article(target.lower())) for target in targets}
    unknown = [target for target, label in found.items() if label is None]
    if unknown:
        raise InputError(f"no class is called {unknown[0]!r}, so no judge can say whether it is gone: erase a class")
    return list(dict.fromkeys(label for label in found.values() if label is not None))


def judged(judge: Judge, images: Tensor, labels: Tensor) -> Judged:
    """The judge's word on images that were asked to show ``labels``."""
    return Judged(*judge_images(judge, images), labels)


def judge_rates(real: Judged) -> dict[int, tuple[float, float]]:
    """Of each class in real images: how often it is recognised, and how often it is seen in images of others.

    Where a class has few images, both are means over all classes.
    """
    seen = real.logits.argmax(1)
    right, num_classes = float((seen == real.labels).float().mean()), real.logits.shape[1]
    found = {}
    for label in real.labels.unique().tolist():
        mine = real.labels == label
        found[label] = (right, (1 - right) / (num_classes - 1))
        if mine.sum() >= _ENOUGH:
            found[label] = (float((seen[mine] == label).float().mean()), float((seen[~mine] == label).float().mean()))
    return found


def erasure_figures(
    before: Judged,
    after: Judged,
    erased: Sequence[int],
    names: Sequence[str],
    rates: dict[int, tuple[float, float]] | None = None,
) -> dict[str, Any]:
    """The figures of an edit from images of the same prompts and seeds before and after it; ``names`` are the classes'.

    ``rates`` are the judge's own on real images; with them, each concept's accuracy is corrected for its errors too.

    Raises:
        InputError: no class is erased or none is kept, or the two sets of images differ in what was asked.
    """
    if not torch.equal(before.labels, after.labels):
        raise InputError("the images before and after were asked for different classes: use the same prompts")
    gone = torch.isin(after.labels, torch.tensor(list(erased)))
    if not gone.any() or gone.all():
        raise InputError("an erasure is measured on erased and on kept classes: name some of each")
    figures = _rates(after, gone) | _relative(before, after, gone)
    figures["before"] = _rates(before, gone)
    figures["per_concept"] = {names[label]: _concept(before, after, label, erased) for label in after.labels.unique()}
    for label, (true_rate, false_rate) in (rates or {}).items():
        if row := figures["per_concept"].get(names[label]):
            row["accuracy_corrected"] = corrected_share(row["accuracy"], true_rate, false_rate)
    return figures | _kept_distance(before, after, ~gone) | _off_target(after, gone, names)


def _rates(found: Judged, gone: Tensor) -> dict[str, Any]:
    """Absolute rates with their intervals."""
    rates: dict[str, Any] = {}
    for k in (1, 5):
        hits = found.hits(k)
        for name, values in ((f"esr{k}", (~hits)[gone]), (f"psr{k}", hits[~gone])):
            rates[name] = float(values.float().mean())
            rates[f"{name}_interval"] = bootstrap_interval(values.double())
    return rates


def _relative(before: Judged, after: Judged, gone: Tensor) -> dict[str, Any]:
    """Relative rates at 1 and 5, means over the concepts that the model could draw, and the worst kept concept."""
    figures: dict[str, Any] = {}
    for k in (1, 5):
        was, now = (_shares(found.hits(k), found.labels) for found in (before, after))
        known = {label: now[label] / share for label, share in was.items() if share >= _KNOWN}
        parts = {
            "esr": [1 - kept for label, kept in known.items() if gone[after.labels == label].all()],
            "psr": [kept for label, kept in known.items() if not gone[after.labels == label].any()],
        }
        for name, values in parts.items():
            figures[f"relative_{name}{k}"] = sum(values) / len(values) if values else None
        figures[f"worst_kept_relative_psr{k}"] = min(parts["psr"], default=None)
        figures[f"worst_erased_relative_esr{k}"] = min(parts["esr"], default=None)
    return figures


def _shares(hits: Tensor, labels: Tensor) -> dict[int, float]:
    return {int(label): float(hits[labels == label].float().mean()) for label in labels.unique()}


def _concept(before: Judged, after: Judged, label: Tensor, erased: Sequence[int]) -> dict[str, Any]:
    """One concept: images, hits and accuracy before and after; of an erased one, how much may be left of it."""
    rows = after.labels == label
    hits, count = int(after.hits(1)[rows].sum()), int(rows.sum())
    return {
        "erased": int(label) in erased,
        "images": count,
        "hits": hits,
        "accuracy": hits / count,
        "accuracy_before": float(before.hits(1)[rows].float().mean()),
        "accuracy_upper95": clopper_pearson_upper(hits, count),
        "same_seed_distance": float((before.features[rows] - after.features[rows]).norm(dim=1).mean()),
    }


def _kept_distance(before: Judged, after: Judged, kept: Tensor) -> dict[str, float]:
    """How far kept images moved, pair by pair, and how far their distribution did, beside two halves of the old."""
    old, new = before.rows(kept), after.rows(kept)
    halves = moments(old.features[::2]), moments(old.features[1::2])
    return {
        "same_seed_distance": float((old.features - new.features).norm(dim=1).mean()),
        "frechet_drift": frechet_distance(moments(old.features), moments(new.features)),
        "frechet_between_halves_before": frechet_distance(*halves),
    }


def _off_target(after: Judged, gone: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """What is drawn instead of the erased: the judge's confidence over that in kept images, and the classes it sees."""
    instead, kept = after.rows(gone), after.rows(~gone)
    seen = instead.logits.argmax(1).bincount(minlength=len(names)).tolist()
    return {
        "off_target_quality": float(instead.confidence.median() / kept.confidence.median()),
        "drawn_instead": {name: count for name, count in zip(names, seen, strict=True) if count},
    }
