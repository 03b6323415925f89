"""Defects of diffusers 0.42: the drafts in docs/upstream hold, logsnr is right there, and a fix would be noticed."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import math
import re
import types
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from scipy import integrate

from logsnr.core.types import Denoiser, Level, Prediction
from logsnr.data.mixture import GaussianMixture
from logsnr.schedules.grids import karras
from logsnr.schedules.scheduler_config import from_scheduler_config
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.scheduler import SNRScheduler
from logsnr.solvers.weights import step_weights

PAGES = Path(__file__).parents[2] / "docs" / "upstream"
FIGURE = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")
STEPS = (40, 80, 160, 320)


def figures(text: str) -> list[float]:
    return [float(found) for found in FIGURE.findall(text)]


def order_is_three(printed: str) -> bool:
    return all(min(figures(line.split("slopes")[1])) >= 2.8 for line in printed.splitlines())


def third_order_beats_second(printed: str) -> bool:
    second, third = (figures(line) for line in printed.splitlines())
    return third[3] < second[3] and min(third[4:]) >= 2.8


def every_line_ends_with(text: str) -> Callable[[str], bool]:
    return lambda printed: all(line.endswith(text) for line in printed.splitlines())


# draft: whether what its reproduction prints is right, and the defect
DRAFTS: dict[str, tuple[Callable[[str], bool], str]] = {
    "dpmpp_order3": (order_is_three, "solver_order=3 of multistep DPM-Solver++ converges at order 2"),
    "unipc_bh1": (every_line_ends_with("then 0 of 256 are NaN"), "UniPC with bh1 returns NaN"),
    "sde_dpmsolver_order3": (every_line_ends_with("finite True"), "two SDE algorithms have no third-order branch"),
    "unipc_float64": (every_line_ends_with("finite True"), "UniPC fails under the default dtype float64"),
    "sde_dpmpp_order3_sign": (third_order_beats_second, "the third weight of sde-dpmsolver++ has the wrong sign"),
}
CANARIES = [
    pytest.param(name, marks=pytest.mark.xfail(strict=True, raises=AssertionError, reason=f"diffusers: {defect}"))
    for name, (_, defect) in DRAFTS.items()
]


@pytest.fixture(autouse=True)
def _default_dtype() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def blocks(name: str, language: str) -> list[str]:
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def printed_by(name: str) -> str:
    """What the reproduction of a page prints."""
    (code,) = blocks(name, "python")
    with redirect_stdout(io.StringIO()) as output:
        exec(compile(code, f"{name}.md", "exec"), {"__name__": name})
    return output.getvalue()


def agree(printed: str, stated: str) -> bool:
    """The same words, errors within a tenth, slopes within 0.2: float32 rounds differently from machine to machine."""
    if FIGURE.sub("#", printed) != FIGURE.sub("#", stated):
        return False
    pairs = zip(figures(printed), FIGURE.findall(stated), strict=True)
    return all(a == pytest.approx(float(b), **({"rel": 0.1} if "e" in b else {"abs": 0.2})) for a, b in pairs)


def edits(diff: str) -> Iterator[tuple[str, str, str]]:
    """The module, the old text and the new text of every hunk."""
    for part in diff.split("--- a/src/")[1:]:
        head, *hunks = part.split("@@\n")
        module = head.splitlines()[0].removesuffix(".py").replace("/", ".")
        for hunk in hunks:
            lines = hunk.splitlines(keepends=True)
            old, new = ("".join(line[1:] for line in lines if line[0] in f" {sign}") for sign in "-+")
            yield module, old, new


def replaced(module: types.ModuleType, changes: list[tuple[str, str]]) -> types.ModuleType:
    """The module again, from its source with some text replaced."""
    source = inspect.getsource(module)
    for old, new in changes:
        assert old in source, f"{module.__name__} no longer has\n{old}"
        source = source.replace(old, new)
    again = types.ModuleType(module.__name__)
    again.__package__ = module.__package__
    exec(compile(source, module.__name__, "exec"), again.__dict__)
    return again


def repair(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put schedulers with the suggested fix of a draft in place of diffusers' own."""
    changes: dict[str, list[tuple[str, str]]] = {}
    for module, old, new in edits(*blocks(name, "diff")):
        changes.setdefault(module, []).append((old, new))
    for module, pairs in changes.items():
        for key, value in vars(replaced(importlib.import_module(module), pairs)).items():
            if key.endswith("Scheduler") and value.__module__ == module:
                monkeypatch.setattr(diffusers, key, value)


@pytest.mark.parametrize("name", DRAFTS)
def test_a_draft_is_listed_and_says_first_that_a_person_decides(name: str) -> None:
    assert f"({name}.md)" in (PAGES / "index.md").read_text(encoding="utf-8")
    assert {path.stem for path in PAGES.glob("*.md")} == {*DRAFTS, "index"}
    lines = (PAGES / f"{name}.md").read_text(encoding="utf-8").splitlines()
    assert "a person decides" in lines[0]
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert headings[:6] == ["Versions", "Reproduction", "Expected", "Actual", "Cause", "Suggested fix"]


@pytest.mark.parametrize("name", [*DRAFTS, "index"])
def test_a_reproduction_is_short_and_stands_alone(name: str) -> None:
    (code,) = blocks(name, "python")
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", node.names[0].name) for node in imports}
    assert names <= {"diffusers", "torch", "numpy"}
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 21


@pytest.mark.parametrize("name", [*DRAFTS, "index"])
def test_a_reproduction_prints_what_its_page_states(name: str) -> None:
    printed = printed_by(name)
    assert agree(printed, blocks(name, "text")[0]), printed
    assert name == "index" or not DRAFTS[name][0](printed)


@pytest.mark.parametrize("name", CANARIES)
def test_diffusers_is_right(name: str) -> None:
    """Expected to fail: once it passes, diffusers has the fix, and the draft and this mark can go."""
    assert DRAFTS[name][0](printed_by(name))


@pytest.mark.parametrize("name", DRAFTS)
def test_the_suggested_fix_repairs_the_reproduction(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    repair(name, monkeypatch)
    printed = printed_by(name)
    assert DRAFTS[name][0](printed)
    assert all(agree(printed, stated) for stated in blocks(name, "text")[1:]), printed


def quadratic(at: float) -> float:
    return 0.5 - at + 2 * at**2


def path_without_noise(kind: type, levels: np.ndarray, algorithm: str) -> list[float]:
    """y = x / alpha at every level, from 0; the network's output is ``quadratic`` of the level."""
    options = {"lower_order_final": False, "final_sigmas_type": "sigma_min", "solver_type": "heun"}
    scheduler = kind(solver_order=3, algorithm_type=algorithm, **options)
    scheduler.convert_model_output = lambda output, sample: output
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.sigmas = torch.from_numpy(np.exp(-levels))
    alphas = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas)[0] * torch.ones(len(levels))
    x, path = torch.zeros(1, dtype=torch.float64), [0.0]
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(torch.full_like(x, quadratic(levels[i])), t, x).prev_sample
        path.append(float(x / alphas[i + 1]))
    return path


@pytest.mark.parametrize(
    ("name", "kind", "algorithm"),
    [
        ("dpmpp_order3", "DPMSolverMultistepScheduler", "dpmsolver++"),
        ("dpmpp_order3", "DPMSolverMultistepScheduler", "dpmsolver"),
        ("dpmpp_order3", "EDMDPMSolverMultistepScheduler", "dpmsolver++"),
        ("dpmpp_order3", "DPMSolverSinglestepScheduler", "dpmsolver++"),  # the fix leaves it as it is
        ("sde_dpmsolver_order3", "DPMSolverMultistepScheduler", "sde-dpmsolver"),
        ("sde_dpmsolver_order3", "EDMDPMSolverMultistepScheduler", "sde-dpmsolver++"),
        ("sde_dpmpp_order3_sign", "DPMSolverMultistepScheduler", "sde-dpmsolver++"),
        ("sde_dpmpp_order3_sign", "DPMSolverSinglestepScheduler", "sde-dpmsolver++"),
    ],
)
def test_a_suggested_third_order_step_integrates_a_quadratic_exactly(
    name: str, kind: str, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    repair(name, monkeypatch)
    scheduler, levels = getattr(diffusers, kind), np.array([-1.0, -0.6, -0.3, 0.2])
    monkeypatch.setitem(scheduler.step.__globals__, "randn_tensor", lambda shape, **_: torch.zeros(shape))
    path, first = path_without_noise(scheduler, levels, algorithm), 0 if "Singlestep" in kind else 2
    factor = 2 if algorithm.startswith("sde") else 1

    def slope(at: float, y: float) -> float:
        return factor * (quadratic(at) - y if "++" in algorithm else -math.exp(-at) * quadratic(at))

    exact = integrate.solve_ivp(slope, levels[[first, 3]], [path[first]], rtol=1e-10, atol=1e-12).y[0, -1]
    assert path[3] == pytest.approx(exact, abs=2e-6)


def sampled(scheduler: object, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Ten steps of a network that halves its input."""
    scheduler.set_timesteps(10)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=dtype) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(0.5 * x, t, x).prev_sample
    return x


def test_what_the_drafts_on_unipc_say_of_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    def unipc(**options) -> object:
        return diffusers.UniPCMultistepScheduler(**options)

    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    kept, doubled = sampled(unipc(solver_type="bh2")), sampled(unipc(), torch.float64)
    for solver_type, finite in (("bh1", False), ("bh2", True)):
        assert bool(sampled(unipc(solver_type=solver_type, **flow)).isfinite().all()) is finite
        assert bool(sampled(unipc(solver_type=solver_type, final_sigmas_type="sigma_min")).isfinite().all())
        assert bool(sampled(unipc(solver_type=solver_type, lower_order_final=False)).isinf().all())
        assert bool(sampled(unipc(solver_type=solver_type, predict_x0=False)).isnan().all())
        with pytest.raises(torch.linalg.LinAlgError, match="singular"):
            sampled(unipc(solver_type=solver_type, solver_order=3, lower_order_final=False))
    with pytest.raises(ValueError, match="final_sigmas_type"):
        diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver", final_sigmas_type="zero")
    repair("unipc_bh1", monkeypatch)
    assert torch.equal(sampled(unipc(solver_type="bh2")), kept)
    monkeypatch.undo()
    repair("unipc_float64", monkeypatch)
    torch.set_default_dtype(torch.float64)
    assert torch.equal(sampled(unipc(), torch.float64), doubled)


WEIGHTS, MEANS, VARIANCES = torch.tensor([[0.3, 0.5, 0.2], [-1.2, 0.3, 1.5], [0.04, 0.01, 0.09]], dtype=torch.float64)
MIXTURE = GaussianMixture(WEIGHTS, MEANS[:, None], VARIANCES[:, None])
STARTS = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
FIRST, LAST = -3.5, 4.5
GRIDS: dict[str, Callable[[int], np.ndarray]] = {
    "equal": lambda steps: np.linspace(FIRST, LAST, steps + 1),
    "Karras": lambda steps: -7 * np.log(np.linspace(math.exp(-FIRST / 7), math.exp(-LAST / 7), steps + 1)),
}


def level(log_ratio: float) -> Level:
    return Level(0.5, 1 / math.sqrt(1 + math.exp(-2 * log_ratio)), 1 / math.sqrt(1 + math.exp(2 * log_ratio)))


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    """dy / dl = x0 - y with y = x / alpha, to ten digits."""

    def slope(log_ratio: float, y: np.ndarray) -> np.ndarray:
        here = level(log_ratio)
        return MIXTURE(here.alpha * torch.from_numpy(y)[:, None], here).x0[:, 0].numpy() - y

    start = STARTS[:, 0].numpy() / level(FIRST).alpha
    solution = integrate.solve_ivp(slope, (FIRST, LAST), start, method="DOP853", rtol=1e-11, atol=1e-12)
    return torch.from_numpy(np.ascontiguousarray(solution.y[:, -1:]))


def solved_by_logsnr(solver: Exponential, denoiser: Denoiser, x: torch.Tensor, levels: np.ndarray) -> torch.Tensor:
    memory = None
    for here, there in pairwise([level(at) for at in levels]):
        x, memory = solver(denoiser, x, here, there, torch.zeros_like(x), memory)
    return x / level(levels[-1]).alpha


def solved_by_diffusers(order: int, levels: np.ndarray) -> torch.Tensor:
    options = {"prediction_type": "sample", "lower_order_final": False, "final_sigmas_type": "sigma_min"}
    scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=order, **options)
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.sigmas = torch.from_numpy(np.exp(-levels))
    x = STARTS
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(MIXTURE(x, level(levels[i])).x0, t, x).prev_sample
    return x / level(levels[-1]).alpha


def rms(y: torch.Tensor, exact: torch.Tensor) -> float:
    return float((y - exact).square().mean().sqrt())


def slopes(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in pairwise(errors)]


def test_the_table_states_what_is_measured(reference: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (PAGES / "dpmpp_order3.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+), (\d+) \| (\S+) \| (\S+) \| (\S+) \|$", text, re.MULTILINE)
    assert len(rows) == 11

    def column(order: int) -> list[float]:
        return [rms(solved_by_diffusers(order, GRIDS[grid](int(steps))), reference) for grid, steps, *_ in rows]

    measured = [column(2), column(3)]
    repair("dpmpp_order3", monkeypatch)
    measured.append(column(3))
    stated = [[float(cell) for cell in cells] for cells in list(zip(*rows, strict=True))[2:]]
    assert np.array(measured) == pytest.approx(np.array(stated), rel=0.1)
    assert slopes(measured[1][-4:]) == pytest.approx([2.3, 2.2, 2.1], abs=0.2)
    assert slopes(measured[2][-4:]) == pytest.approx([3.0, 3.1, 3.2], abs=0.2)


def test_order_three_of_logsnr_converges_at_order_three(reference: torch.Tensor) -> None:
    solved = (solved_by_logsnr(Exponential(order=3), MIXTURE, STARTS, GRIDS["equal"](steps)) for steps in STEPS)
    errors = [rms(y, reference) for y in solved]
    assert min(slopes(errors)) >= 2.8
    assert errors[-1] < rms(solved_by_diffusers(3, GRIDS["equal"](STEPS[-1])), reference) / 5


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_weights_of_logsnr_integrate_polynomials_exactly(order: int, rho: float) -> None:
    ends, nodes = (0.1, 0.35), (0.1, -0.2, -0.3, -0.7)[:order]
    weights = step_weights(level(ends[0]), level(ends[1]), tuple(level(node) for node in nodes), rho)
    for power in range(order):
        integrand = lambda at, p=power: (1 + rho**2) * math.exp((1 + rho**2) * (at - ends[1])) * at**p  # noqa: E731
        exact = integrate.quad(integrand, *ends)[0]
        found = sum(weight * node**power for weight, node in zip(weights.values, nodes, strict=True))
        assert found / level(ends[1]).alpha == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("corrector", [False, True])
def test_the_last_step_of_logsnr_returns_the_clean_estimate(order: int, corrector: bool) -> None:
    config = diffusers.UniPCMultistepScheduler(solver_type="bh1").config
    scheduler = SNRScheduler.from_config(config, solver_order=order, corrector=corrector)
    scheduler.set_timesteps(10)
    assert scheduler.levels[-1] == Level(0.0, 1.0, 0.0)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        made = scheduler.step(0.5 * x, t, x)
        x = made.prev_sample
    assert bool(x.isfinite().all())
    assert torch.equal(x, made.pred_original_sample)


@pytest.mark.parametrize("algorithm", ["sde-dpmsolver", "sde-dpmsolver++"])
def test_third_order_with_noise_runs_in_logsnr(algorithm: str) -> None:
    stock = diffusers.DPMSolverMultistepScheduler(algorithm_type=algorithm, final_sigmas_type="sigma_min")
    scheduler = SNRScheduler.from_config(stock.config, solver_order=3, rho=1.0)
    scheduler.set_seeds([0])
    assert bool(sampled(scheduler).isfinite().all())


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_default_dtype_float64_changes_nothing_in_logsnr(order: int) -> None:
    config = diffusers.UniPCMultistepScheduler().config
    made = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        scheduler = SNRScheduler.from_config(config, solver_order=order, corrector=True)
        made.append(sampled(scheduler))
        assert bool(sampled(scheduler, torch.float64).isfinite().all())
    assert torch.equal(*made)


def test_the_third_weight_of_logsnr_with_noise_is_right() -> None:
    """The problem of the draft: no noise, x0 = sin(1.3 l)."""

    def clean(xt: torch.Tensor, here: Level, cond: object = None) -> Prediction:
        x0 = torch.full_like(xt, math.sin(1.3 * here.log_ratio))
        return Prediction(x0, (xt - here.alpha * x0) / here.sigma)

    def error(order: int, steps: int) -> float:
        start = torch.zeros(1, dtype=torch.float64)
        return abs(
            float(solved_by_logsnr(Exponential(order, 1.0), clean, start, np.linspace(-3, 3, steps + 1))) - exact
        )

    forced = {end: 2 * (2 * math.sin(1.3 * end) - 1.3 * math.cos(1.3 * end)) / (4 + 1.3**2) for end in (-3, 3)}
    exact = forced[3] - forced[-3] * math.exp(-12)
    errors = [error(3, steps) for steps in STEPS]
    assert min(slopes(errors)) >= 2.8
    assert errors[-1] == pytest.approx(4.5e-6, rel=0.1)
    assert error(2, STEPS[-1]) == pytest.approx(3.5e-5, rel=0.1)


def test_karras_levels_of_logsnr_have_timesteps_of_their_own() -> None:
    schedule = from_scheduler_config({"beta_schedule": "squaredcos_cap_v2"})
    for at in karras(schedule, 20)[:-1]:
        assert float(schedule.log_snr(torch.tensor(at.t, dtype=torch.float64))) == pytest.approx(at.log_snr, abs=1e-6)
    scheduler = SNRScheduler(beta_schedule="squaredcos_cap_v2", grid="karras")
    scheduler.set_timesteps(20)
    assert len(set(scheduler.timesteps.tolist())) == 20
    assert bool(sampled(scheduler).isfinite().all())
