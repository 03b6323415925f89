"""A calibrated solver as a small JSON file: its levels and a few numbers a step, for one model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from logsnr.core.artifact import write_json
from logsnr.core.config import from_dict, read_json
from logsnr.core.errors import InputError, MissingError
from logsnr.core.types import Denoiser, Level
from logsnr.schedules.grids import DATA, check_grid
from logsnr.schedules.schedule import Schedule, levels_of
from logsnr.solvers.exponential import Exponential, Memory, moved_by
from logsnr.solvers.weights import StepWeights

FORMAT = "logsnr solver table 1"
ESTIMATES = 5
"""Clean estimates that a step of a table reads at most, its own included."""
_WORLDS = Path(__file__).parent.parent / "worlds"


@dataclass(frozen=True)
class Analytic:
    """The exponential solver that a table falls back to."""

    order: int = 2
    variant: str = "heun"
    corrector: bool = False


@dataclass(frozen=True)
class SolverTable:
    """Levels as log-SNR, noisiest first (clean data follows), and either coefficients or an analytic solver.

    ``coefficients[i]`` = (c0, c1, c2, ...): y_next = c0 y + c1 x0_i + c2 x0_{i-1} + ... with y = x / alpha and up to
    five clean estimates. With ``infinite_start`` a level of infinite noise comes first, and its step is the exact one.
    """

    log_snr: tuple[float, ...]
    coefficients: tuple[tuple[float, ...], ...] = ()
    analytic: Analytic | None = None
    infinite_start: bool = False
    fingerprint: str = ""
    prediction: str = ""
    guidance_scale: float = 1.0
    negative: str = ""
    prompts: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    format: str = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise InputError(f"the solver table has format {self.format!r}: this version reads {FORMAT!r}")
        if bool(self.coefficients) == bool(self.analytic):
            raise InputError("a solver table holds either coefficients or an analytic solver: calibrate anew")
        lengths = {len(row) for row in self.coefficients}
        if self.coefficients and (len(self.coefficients) != self.steps or not lengths <= set(range(2, 2 + ESTIMATES))):
            raise InputError(
                f"the solver table has {self.steps} levels and needs 2 to {1 + ESTIMATES} coefficients for each: "
                "calibrate anew"
            )

    @property
    def steps(self) -> int:
        """Evaluations of the network."""
        return len(self.log_snr) + self.infinite_start

    def check_model(self, fingerprint: str, guidance_scale: float, negative: str = "") -> None:
        """Refuse to serve another network or guidance than the table was made for; warn of another negative prompt.

        Raises:
            InputError: as said.
        """
        if self.fingerprint and self.fingerprint != fingerprint:
            raise InputError("the solver table belongs to another network: run logsnr calibrate on this one")
        if self.fingerprint and self.guidance_scale != guidance_scale:
            raise InputError(
                f"the solver table was made at guidance_scale {self.guidance_scale:g}, not {guidance_scale:g}: "
                "use that, or calibrate again"
            )
        if self.fingerprint and guidance_scale > 1 and self.negative != negative:
            warnings.warn(
                f"the solver table was made with the negative prompt {self.negative!r}, not {negative!r}: it serves "
                "both, but was fitted to the first; to be sure, calibrate with the one that is served",
                stacklevel=2,
            )

    def levels(self, schedule: Schedule) -> list[Level]:
        """The grid in a schedule, clean data last."""
        first = [schedule.level(1.0)] if self.infinite_start else []
        return check_grid([*first, *levels_of(schedule, self.log_snr), DATA])

    def solver(self) -> Exponential | Tabulated:
        """The solver of the table."""
        if self.analytic:
            return Exponential(self.analytic.order, 0.0, self.analytic.variant, corrector=self.analytic.corrector)  # type: ignore[arg-type]
        return Tabulated(self)

    def save(self, path: Path) -> Path:
        """Write the table; the file appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))
        return path


def sigma_list(levels: Sequence[Level]) -> list[float]:
    """sigma / alpha of levels, as k-diffusion style programs take them; infinite noise is inf."""
    return [at.sigma / at.alpha if at.alpha else math.inf for at in levels]


def time_list(levels: Sequence[Level]) -> list[float]:
    """sigma / (alpha + sigma) of levels, as flow models take them."""
    return [at.sigma / (at.alpha + at.sigma) for at in levels]


def load_table(source: Path | str | dict[str, Any]) -> SolverTable:
    """A table from a JSON file or its content; "fashion/5" is the one that a world ships for that many evaluations.

    Raises:
        MissingError: there is no such file.
        BrokenError: the file cannot be read.
        InputError: it is no solver table.
    """
    content = source if isinstance(source, dict) else read_json(_shipped(Path(source)))
    if not isinstance(content, dict) or "log_snr" not in content:
        raise InputError(f"{source} is no solver table: give a file that logsnr calibrate wrote")
    return from_dict(SolverTable, content)


def _shipped(path: Path) -> Path:
    """The path itself, or where "WORLD/EVALUATIONS" lies."""
    folder = _WORLDS / str(path.parent).replace("-", "_") / "solvers"
    named = len(path.parts) == 2 and path.name.isdigit() and ".." not in path.parts
    if not named or path.exists() or not folder.is_dir():
        return path
    shipped = {int(file.stem): file for file in folder.glob("*.json")}
    if int(path.name) in shipped:
        return shipped[int(path.name)]
    counts = ", ".join(map(str, sorted(shipped)))
    raise MissingError(f"{path.parent} ships solver tables for {counts} evaluations, not {path.name}: run calibrate")


@dataclass(frozen=True)
class Tabulated:
    """The multistep solver with the coefficients of a table."""

    table: SolverTable
    noisy = False

    def __call__(
        self, denoiser: Denoiser, x: Tensor, here: Level, there: Level, noise: Tensor | None, memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        return self.advance(x, denoiser(x, here).x0, here, there, noise, memory)

    def advance(
        self, x: Tensor, x0: Tensor, here: Level, there: Level, noise: Tensor | None, memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        """The sample at ``there`` from the clean estimate at ``here``, and the memory of it."""
        memory = memory or Memory()
        if memory.step >= self.table.steps:
            raise InputError(f"the solver table has {self.table.steps} steps and there are more: use its own grid")
        nodes = ((here, x0), *memory.history)[:ESTIMATES]
        moved = moved_by(self.weights(here, there, nodes, memory.step), x, nodes, None)
        return moved, Memory(memory.step + 1, nodes if here.alpha else ())

    def weights(self, here: Level, there: Level, nodes: Any, step: int) -> StepWeights:
        """The weights of a step from the table's row; infinite noise is left by the exact first step."""
        if here.alpha == 0:
            return Exponential(1).weights(here, there, nodes[:1], step)
        linear, *values = self.table.coefficients[step]
        scaled = tuple(there.alpha * value for value in values[: len(nodes)])
        return StepWeights(there.alpha * linear / here.alpha, scaled, 0.0)
