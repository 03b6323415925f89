"""The boundary of a consistency model (2303.01469): at the least noise its function is the sample itself.

With s = sigma / alpha, x = xt / alpha, the clean estimate D(x, s) of any network and data of deviation d,

    f(x, s) = c_skip x + (1 - s_min / s) (D - e_skip x),
    c_skip = d^2 / ((s - s_min)^2 + d^2),  e_skip = d^2 / (s^2 + d^2).

For EDM's D = e_skip x + e_out F that is c_skip x + c_out F; for s well above s_min it is D.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Boundary:
    """Where a consistency function is the sample itself, for data of a deviation."""

    sigma_min: float = 0.002
    sigma_data: float = 0.5

    def weights(self, s: float) -> tuple[float, float]:
        """(a, b) with f = a x + b D at noise s."""
        data, above = self.sigma_data**2, s - self.sigma_min
        gate = above / s
        return data / (above**2 + data) - gate * data / (s**2 + data), gate

    def renoised(self, s: float) -> float:
        """How much new noise brings a clean sample, which has s_min of it, to noise s."""
        return max(s**2 - self.sigma_min**2, 0.0) ** 0.5
