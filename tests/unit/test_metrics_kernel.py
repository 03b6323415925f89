"""Kernel distance against its sums written out, and no bias where both sets are of one distribution."""

from __future__ import annotations

import pytest
import torch

from logsnr.core.errors import InputError
from logsnr.metrics.kernel import kernel_distance


def test_it_is_the_sums_written_out() -> None:
    first, second = torch.randn(5, 3, dtype=torch.float64), 1 + torch.randn(4, 3, dtype=torch.float64)

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return (float(x @ y) / 3 + 1) ** 3

    total = 0.0
    for rows in (first, second):
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        total += sum(kernel(rows[i], rows[j]) for i, j in pairs) / len(pairs)
    total -= 2 * sum(kernel(x, y) for x in first for y in second) / 20
    assert kernel_distance(first, second) == pytest.approx(total)


def test_it_has_no_bias_with_few_samples_and_sees_a_shift() -> None:
    draws = torch.Generator().manual_seed(0)

    def in_standard_errors(shift: float) -> float:
        pairs = [torch.randn(2, 8, 4, generator=draws) for _ in range(2000)]
        found = torch.tensor([kernel_distance(a, b + shift) for a, b in pairs])
        return float(found.mean() / (found.std() / len(found) ** 0.5))

    assert abs(in_standard_errors(0.0)) < 3.5
    assert in_standard_errors(0.5) > 10


@pytest.mark.parametrize("shapes", [((1, 3), (4, 3)), ((4, 3), (4, 2))])
def test_too_few_or_unlike_rows_are_refused(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    with pytest.raises(InputError, match="no kernel distance"):
        kernel_distance(*(torch.zeros(shape) for shape in shapes))
