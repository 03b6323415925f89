"""One path for every member: at equal levels of log-SNR and equal noise, y = x / alpha does not know the schedule."""

import ast
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from members import MEMBERS

from logsnr.core.types import Level, Prediction
from logsnr.data.mixture import GaussianMixture
from logsnr.schedules.curve import Curve
from logsnr.schedules.families import Cosine, Flow
from logsnr.schedules.grids import DATA, uniform_time
from logsnr.schedules.prediction import output_of, predict
from logsnr.schedules.schedule import levels_of
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.plain import DDIM, Angle

MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
    torch.tensor([[-1.2], [0.3], [1.5]], dtype=torch.float64),
    torch.tensor([[0.04], [0.01], [0.09]], dtype=torch.float64),
)
LOG_SNR = [-7.0, -5.5, -5.0, -3.1, -2.0, -0.6, 0.1, 1.4, 2.0, 3.7, 5.0, 6.2, 8.0]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def path(schedule, solver):
    """y at every noisy level, from the same start and noise."""
    grid = levels_of(schedule, LOG_SNR)
    x, memory = grid[0].alpha * 30 * normal(64, 1), None
    found = []
    for index, (here, there) in enumerate(pairwise([*grid, DATA])):
        x, memory = solver(MIXTURE, x, here, there, normal(64, 1, seed=index + 1), memory)
        found.append(x / there.alpha)
    return torch.stack(found)


SOLVERS = {f"order {order} rho {rho:g}": Exponential(order, rho) for order in (1, 2, 3) for rho in (0.0, 0.5, 1.0)} | {
    "midpoint": Exponential(2, 1.0, "midpoint"),
    "corrected": Exponential(3, 0.5, corrector=True),
    "F": Exponential(2, 0.5, linear="F", data_std=0.9),
    "bump": Exponential(2, "bump"),
    "list": Exponential(3, [0.0, 1.0] * 7),
    "best variance": Exponential(1, 0.5, mmse=Curve((-4.0, 4.0), (0.8, 0.0))),
    "ddim": DDIM(0.6),
    "angle": Angle(2, 0.9),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_the_path_does_not_know_the_schedule(name):
    expected = path(Cosine(), SOLVERS[name])
    gaps = {
        member: float((path(schedule, SOLVERS[name]) - expected).abs().max()) for member, schedule in MEMBERS.items()
    }
    assert {member: gap for member, gap in gaps.items() if not gap <= 1e-10} == {}


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_a_run_from_exactly_no_data_does_not_know_the_scale(rho):
    solver, found = Exponential(2, rho), []
    for member in ("flow", "cosine", "trig", "stable to zero", "wide flow"):
        x, memory = normal(64, 1), None
        grid = [Level(1.0, 0.0, 1.0), *levels_of(MEMBERS[member], LOG_SNR), DATA]
        for index, (here, there) in enumerate(pairwise(grid)):
            x, memory = solver(MIXTURE, x, here, there, normal(64, 1, seed=index + 1), memory)
        found.append(x)
    assert all(float((x - found[0]).abs().max()) < 1e-10 for x in found[1:])


ENDS = ("flow", "shifted flow", "stable to zero", "linear to zero", "cosine", "trig of data 0.5")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["x0", "v", "flow", "F"])
@pytest.mark.parametrize("member", ENDS)
def test_the_ends_are_finite_in_low_precision(member, kind, dtype):
    """From alpha = 0 to sigma = 0, as a network of the kind would say it, for every order and rho."""

    def network(xt, level, cond=None):
        said = output_of(kind, MIXTURE(xt, level), level)
        assert said.dtype == xt.dtype == dtype
        return predict(kind, xt, said, level)

    for order in (1, 2, 3):
        for rho in (0.0, 0.5, 1.0):
            x, memory = normal(16, 1).to(dtype), None
            for index, (here, there) in enumerate(pairwise(uniform_time(MEMBERS[member], 8))):
                noise = normal(16, 1, seed=index).to(dtype)
                x, memory = Exponential(order, rho)(network, x, here, there, noise, memory)
                assert bool(x.isfinite().all())
            assert x.dtype == dtype
            assert float(x.abs().max()) < 3


@pytest.mark.parametrize("order", [1, 2, 3])
def test_low_precision_is_close_to_double(order):
    x, found = normal(64, 1), {}
    for dtype in (torch.float64, torch.float32):
        at, memory = x.to(dtype), None
        for here, there in pairwise(uniform_time(Flow(), 20)):
            at, memory = Exponential(order)(
                lambda z, level: Prediction(MIXTURE(z, level).x0, z), at, here, there, None, memory
            )
        found[dtype] = at.double()
    assert float((found[torch.float32] - found[torch.float64]).abs().max()) < 1e-3


TINY = 1e-3
BOUNDS = ("clamp", "clip", "clamp_", "clamp_min", "max", "min", "maximum", "minimum", "where")
COEFFICIENTS = ("alpha", "sigma", "snr", "ratio", "beta")


def fudges(source):
    """Places where a tiny constant is added to something, bounds a coefficient, or is a power of two."""
    for node in ast.walk(ast.parse(source)):
        constants = [part for part in ast.walk(node) if isinstance(part, ast.Constant) and type(part.value) is float]
        tiny = any(0 < abs(part.value) < TINY for part in constants)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            sides = [side for side in (node.left, node.right) if isinstance(side, ast.Constant)]
            if any(type(side.value) is float and 0 < side.value < TINY for side in sides):
                yield ast.unparse(node)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            if isinstance(node.right, ast.UnaryOp) and isinstance(node.left, ast.Constant):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and tiny:
            name, text = ast.unparse(node.func).split(".")[-1], ast.unparse(node)
            if name in BOUNDS and any(word in text for word in COEFFICIENTS):
                yield text


SOURCES = Path(__file__).parents[2] / "src" / "logsnr"


@pytest.mark.parametrize("folder", ["schedules", "solvers"])
def test_no_constants_paper_over_the_ends(folder):
    files = sorted((SOURCES / folder).glob("*.py"))
    assert len(files) > 5
    assert [found for file in files for found in fudges(file.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "line", ["sigma + 1e-5", "x / (sigma - 1e-08)", "a[-1] = 2 ** -24", "alpha.clamp(min=1e-8)", "max(sigma, 1e-10)"]
)
def test_the_check_sees_such_constants(line):
    assert list(fudges(line))
