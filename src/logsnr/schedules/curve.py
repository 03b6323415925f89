"""A curve over log(alpha / sigma) as a plain table: mean squared errors, noise multipliers, linear parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logsnr.core.errors import InputError


@dataclass(frozen=True)
class Curve:
    """``values`` at rising ``points`` (log(alpha / sigma)), linear in between, constant outside."""

    points: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.points) != len(self.values) or not self.points:
            raise InputError(f"a curve has {len(self.points)} points and {len(self.values)} values: give as many")
        if not (np.diff(self.points) > 0).all() or not np.isfinite([*self.points, *self.values]).all():
            raise InputError("a curve needs finite points that rise strictly: sort them and drop duplicates")

    def __call__(self, log_ratio: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """The values at log(alpha / sigma), shaped like it."""
        return np.asarray(np.interp(np.asarray(log_ratio), self.points, self.values))


def curve(points: Sequence[float], values: Sequence[float]) -> Curve:
    """A curve from points in any order."""
    order = np.argsort(points)
    return Curve(tuple(float(points[i]) for i in order), tuple(float(values[i]) for i in order))
