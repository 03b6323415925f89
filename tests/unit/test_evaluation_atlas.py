"""The atlas of an edit on features whose damage is known."""

from __future__ import annotations

import pytest
import torch

from logsnr.core.errors import InputError
from logsnr.evaluation.atlas import atlas
from logsnr.evaluation.plots import plot_atlas

CONCEPTS = ("boot", "", "sneaker", "sandal", "bag", "coat")
ERASED = (True, False, False, False, False, False)
DISTANCES = torch.tensor([0.0, 5.0, 1.0, 2.0, 3.0, 4.0])


def features(damage: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Three images of each concept, 2 apart from each other, and moved by half the square root of their damage."""
    corners = torch.eye(3).mul(2**0.5).expand(len(damage), 3, 3)  # any two are 2 apart
    moved = torch.tensor([1.0, 0.0, 0.0]) * 2 * torch.tensor(damage)[:, None, None]
    return corners, corners + moved


def test_damage_is_in_units_of_what_the_concept_spans() -> None:
    damage = [1.0, 0.3, 0.5, 0.4, 0.2, 0.1]
    found = atlas(CONCEPTS, ERASED, DISTANCES, *features(damage))
    by_name = {row["concept"]: row["damage"] for row in found["concepts"]}
    assert by_name == pytest.approx(dict(zip(CONCEPTS, damage, strict=True)))
    assert [row["concept"] for row in found["concepts"]] == ["boot", "sneaker", "sandal", "", "bag", "coat"]
    assert found["spearman"] == pytest.approx(-0.7)  # ranks of damage 3 1 2 4 5 against distances 5 1 2 3 4
    assert found["empty_prompt_percentile"] == pytest.approx(2 / 5)
    assert plot_atlas(found).size[0] > 300


def test_what_cannot_be_ranked_is_refused() -> None:
    before, after = features([0.0] * 6)
    with pytest.raises(InputError, match="fewer than three"):
        atlas(CONCEPTS, (True,) * 4 + (False,) * 2, DISTANCES, before, after)
    with pytest.raises(InputError, match="two images"):
        atlas(CONCEPTS, ERASED, DISTANCES, before[:, :1], after[:, :1])
