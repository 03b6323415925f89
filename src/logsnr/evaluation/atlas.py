"""The atlas of an edit: which concepts it hurt, against how near their text is to what was erased.

A concept's damage is the distance between images of the same prompt and seed before and after, in a judge's features,
over the distance between two images of that prompt before; so prompts that name no class, the empty one among them,
have their place too. At 0 nothing changed; at 1 an image moved as far as two images of its prompt are apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from logsnr.core.errors import InputError


def atlas(
    concepts: Sequence[str], erased: Sequence[bool], distances: Tensor, before: Tensor, after: Tensor
) -> dict[str, Any]:
    """The damage of each concept, most hurt first, and its rank correlation with the text distance among those kept.

    ``distances`` (concepts,) are those to the nearest target's text; features (concepts, images, d) are of the same
    prompts and seeds before and after.

    Raises:
        InputError: fewer than three concepts are kept, or fewer than two images are of each.
    """
    if before.shape[1] < 2:
        raise InputError("an atlas compares at least two images of each concept: raise the number of images")
    if len(concepts) - sum(erased) < 3:
        raise InputError("an atlas ranks the concepts that are kept, and there are fewer than three: name more")
    moved = (after - before).norm(dim=2).mean(1)
    apart = (before - before.roll(1, dims=1)).norm(dim=2).mean(1)
    damage = moved / apart.clamp(min=1e-12)
    rows = [
        {"concept": concept, "erased": gone, "text_distance": float(gap), "damage": float(hurt)}
        for concept, gone, gap, hurt in zip(concepts, erased, distances, damage, strict=True)
    ]
    kept = ~torch.tensor(list(erased))
    found = spearmanr(distances[kept].numpy(), damage[kept].numpy())
    figures: dict[str, Any] = {"spearman": float(found.statistic), "spearman_p": float(found.pvalue)}
    if "" in concepts:
        figures["empty_prompt_percentile"] = float((damage[kept] < damage[list(concepts).index("")]).double().mean())
    return {**figures, "concepts": sorted(rows, key=lambda row: -row["damage"])}
