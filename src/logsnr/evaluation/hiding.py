"""The hiding protocol: is the concept gone without its key, is it back with it, and did everything else stay.

All images are of the same prompts and seeds: by the original, by the hidden model without a key, with it, and with
wrong ones. Rates are divided by the original's. Distances are mean squared differences of images of the same seed, over
those of two of the original's own images of one prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.evaluation.erasure import Judged
from logsnr.evaluation.erasure_report import Images
from logsnr.metrics.bounds import clopper_pearson_upper, wilson


@dataclass(frozen=True)
class HidingImages:
    """Images of the same prompts and seeds: by the original, and by the hidden model without a key and with it.

    ``again`` are the original's images (n, ...) from other seeds; ``wrong`` are images of the hidden concepts' prompts
    alone, by the kind of key.
    """

    original: Images
    again: Tensor
    plain: Images
    keyed: Images
    wrong: Mapping[str, Images]


def hiding_figures(seen: HidingImages, hidden: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """The figures of a hidden model.

    Raises:
        InputError: no concept is hidden or none is kept, or the sets differ in what was asked.
    """
    original, plain, keyed = seen.original, seen.plain, seen.keyed
    labels = original.judged.labels
    if not all(torch.equal(labels, other.judged.labels) for other in (plain, keyed)):
        raise InputError("the images were asked for different classes: use the same prompts")
    gone = torch.isin(labels, torch.tensor(list(hidden)))
    if not gone.any() or gone.all():
        raise InputError("a hiding is measured on hidden and on kept classes: name some of each")
    leaks, count = int(plain.judged.hits(1)[gone].sum()), int(gone.sum())
    sets = {"was": original, "plain": plain, "keyed": keyed}
    shares = {name: _shares(found.judged) for name, found in sets.items()}
    rates = {name: _relative(shares["was"], shares[name]) for name in ("plain", "keyed")}
    kept = {name: [rate for label, rate in found.items() if label not in hidden] for name, found in rates.items()}
    instead = plain.judged.rows(gone)
    return {
        "hidden": 1 - leaks / count,
        "leakage_upper95": clopper_pearson_upper(leaks, count),
        "recovered": _mean([rate for label, rate in rates["keyed"].items() if label in hidden]),
        "mse_ratio": _moved(original, keyed, seen.again, gone),
        "label_agreement": float(_agree(original, keyed)[gone].float().mean()),
        "preserved": _mean(kept["plain"]),
        "preserved_worst": min(kept["plain"], default=None),
        "preserved_mse_ratio": _moved(original, plain, seen.again, ~gone),
        "preserved_with_key": _mean(kept["keyed"]),
        "preserved_with_key_worst": min(kept["keyed"], default=None),
        "wrong_key": {kind: _opened(found.judged) for kind, found in seen.wrong.items()},
        "drawn_instead": _seen(instead, names),
        "hidden_quality": float(instead.confidence.median() / plain.judged.rows(~gone).confidence.median()),
        "per_concept": {names[label]: {"hidden": label in hidden, **_counts(label, sets)} for label in shares["was"]},
    }


def _shares(found: Judged) -> dict[int, float]:
    hits = found.hits(1)
    return {int(label): float(hits[found.labels == label].float().mean()) for label in found.labels.unique()}


def _counts(label: int, sets: Mapping[str, Images]) -> dict[str, Any]:
    """Of a class the share that every set shows, its hits and how many were asked for, and how many may leak."""
    hits = {name: found.judged.hits(1)[found.judged.labels == label] for name, found in sets.items()}
    num = len(hits["plain"])
    rates = {name: float(found.float().mean()) for name, found in hits.items()}
    counts = {f"hits_{name}": int(found.sum()) for name, found in hits.items()}
    return {**rates, "images": num, **counts, "plain_upper95": clopper_pearson_upper(counts["hits_plain"], num)}


def _relative(was: Mapping[int, float], now: Mapping[int, float]) -> dict[int, float]:
    """Rates over the original's, of the classes that it draws."""
    return {label: now[label] / share for label, share in was.items() if share > 0}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _agree(first: Images, second: Images) -> Tensor:
    return first.judged.logits.argmax(1) == second.judged.logits.argmax(1)


def _moved(original: Images, other: Images, again: Tensor, rows: Tensor) -> float:
    """Squared differences to the original's images of the same seeds, over those between its own of two seeds."""
    apart, moved = ((original.images[rows] - images[rows]).square().mean() for images in (again, other.images))
    return float(moved / apart)


def _opened(found: Judged) -> dict[str, Any]:
    """The share of images that a wrong key opened, with its interval."""
    hits, num = int(found.hits(1).sum()), len(found.labels)
    upper = clopper_pearson_upper(hits, num)
    return {"share": hits / num, "interval": wilson(hits, num), "upper95": upper, "hits": hits, "images": num}


def _seen(found: Judged, names: Sequence[str]) -> dict[str, int]:
    counts = found.logits.argmax(1).bincount(minlength=len(names)).tolist()
    return {name: count for name, count in zip(names, counts, strict=True) if count}
