"""What a matrix of accuracies says of continual learning; what is undefined is None, never left out.

``matrix[i][j]`` is the accuracy on the test images of experience j after experience i, for j up to i.
"""

from __future__ import annotations

from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def final_accuracy(matrix: Matrix, counts: Sequence[int] | None = None) -> float:
    """The mean over experiences after the last one; with ``counts`` of test images, over images."""
    return _mean(matrix[-1], counts)


def mean_accuracy(matrix: Matrix) -> float:
    """The mean over all moments of the mean over what was seen until then, which papers call average accuracy too."""
    return sum(_mean(row, None) for row in matrix) / len(matrix)


def forgetting_max(matrix: Matrix) -> float | None:
    """How far accuracy fell from its best at any moment before the last, the mean over all experiences but the last.

    What got better in the end counts negative; None for one experience.
    """
    return _forgetting(matrix, [max(row[j] for row in matrix[j:-1]) for j in range(len(matrix) - 1)])


def forgetting_first(matrix: Matrix) -> float | None:
    """The same from what it was right after the experience (Avalanche's reference)."""
    return _forgetting(matrix, [matrix[j][j] for j in range(len(matrix) - 1)])


def summary(matrix: Matrix, counts: Sequence[int]) -> dict[str, float | None]:
    """All of them by name."""
    return {
        "final_accuracy": final_accuracy(matrix),
        "final_accuracy_of_images": final_accuracy(matrix, counts),
        "mean_accuracy": mean_accuracy(matrix),
        "forgetting_max": forgetting_max(matrix),
        "forgetting_first": forgetting_first(matrix),
    }


def _forgetting(matrix: Matrix, references: Sequence[float]) -> float | None:
    if not references:
        return None
    return sum(reference - matrix[-1][j] for j, reference in enumerate(references)) / len(references)


def _mean(row: Sequence[float], counts: Sequence[int] | None) -> float:
    weights = counts[: len(row)] if counts else [1] * len(row)
    return sum(value * weight for value, weight in zip(row, weights, strict=True)) / sum(weights)
