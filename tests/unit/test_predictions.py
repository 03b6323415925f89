"""What a network's output means: every kind there and back, at the ends and at general rates."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logsnr.core.errors import InputError
from logsnr.core.types import Level, Prediction
from logsnr.schedules.families import Cosine, Flow, Trig, scaled_linear
from logsnr.schedules.prediction import EDMOutput, check_start, meaning, output_of, predict, x0_weights

KINDS = ("eps", "x0", "v", "flow", "score", "F")
DATA, NOISE = Level(0.0, 1.0, 0.0), Level(1.0, 0.0, 1.0)

kinds = pytest.mark.parametrize("kind", KINDS)


def pair(seed=0):
    draws = torch.Generator().manual_seed(seed)
    return (torch.randn(5, 2, 3, generator=draws, dtype=torch.float64) for _ in range(2))


def there_and_back(kind, level, **options):
    x0, eps = pair()
    output = output_of(kind, Prediction(x0, eps), level, **options)
    return x0, eps, predict(kind, level.alpha * x0 + level.sigma * eps, output, level, **options)


def rates_of(schedule, t):
    """(alpha', sigma') of a schedule."""
    time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    return tuple(torch.autograd.grad(function(time), time)[0].item() for function in (schedule.alpha, schedule.sigma))


@kinds
@given(alpha=st.floats(1e-3, 2), sigma=st.floats(1e-3, 2), data_std=st.floats(0.2, 4))
def test_predictions_go_there_and_back(kind, alpha, sigma, data_std):
    x0, eps, found = there_and_back(kind, Level(0.5, alpha, sigma), data_std=data_std)
    assert (found.x0 - x0).abs().max() < 1e-10
    assert (found.eps - eps).abs().max() < 1e-10


@pytest.mark.parametrize("schedule", [Trig(), Trig(0.5), Cosine(), scaled_linear(), Flow()], ids=lambda s: repr(s)[:12])
@pytest.mark.parametrize("t", [0.05, 0.3, 0.5, 0.8, 0.95])
def test_flow_goes_there_and_back_at_the_rates_of_any_schedule(schedule, t):
    level, rates = schedule.level(t), rates_of(schedule, t)
    x0, eps, found = there_and_back("flow", level, rates=rates)
    assert (found.x0 - x0).abs().max() < 1e-10
    assert (found.eps - eps).abs().max() < 1e-10
    velocity = output_of("flow", Prediction(x0, eps), level, rates=rates)
    assert torch.allclose(velocity, rates[0] * x0 + rates[1] * eps, rtol=0, atol=1e-14)


def test_the_rates_of_rectified_flow_are_the_default():
    assert rates_of(Flow(), 0.3) == (-1, 1)
    assert meaning("flow", Flow().level(0.3)) == meaning("flow", Flow().level(0.3), rates=(-1, 1))


@pytest.mark.parametrize("kind", ["eps", "v", "flow", "F"])
def test_the_data_end_needs_no_fudge(kind):
    x0, eps, found = there_and_back(kind, DATA)
    assert (found.x0 - x0).abs().max() < 1e-14
    assert (found.eps - eps).abs().max() < 1e-14


@pytest.mark.parametrize("kind", ["x0", "v", "flow", "F"])
def test_the_noise_end_needs_no_fudge(kind):
    x0, eps, found = there_and_back(kind, NOISE)
    assert (found.x0 - x0).abs().max() < 1e-14
    assert (found.eps - eps).abs().max() < 1e-14


def test_clean_data_has_no_noise():
    x0, _, found = there_and_back("x0", DATA)
    assert torch.equal(found.x0, x0)
    assert torch.equal(found.eps, torch.zeros_like(x0))


@pytest.mark.parametrize("kind", ["eps", "score"])
def test_noise_prediction_cannot_start_without_data(kind):
    with pytest.raises(InputError, match="alpha = 0"):
        check_start(kind, NOISE)
    check_start(kind, scaled_linear().level(1))


@pytest.mark.parametrize("kind", ["x0", "v", "flow", "F"])
def test_the_other_kinds_start_anywhere(kind):
    check_start(kind, NOISE)


def test_outputs_are_what_the_papers_define():
    x0, eps = pair()
    level, prediction = Level(0.3, 0.6, 0.8), Prediction(x0, eps)
    assert torch.equal(output_of("eps", prediction, level), eps)
    assert torch.equal(output_of("x0", prediction, level), x0)
    assert torch.equal(output_of("v", prediction, level), 0.6 * eps - 0.8 * x0)
    assert torch.equal(output_of("flow", prediction, level), eps - x0)
    xt = 0.6 * x0 + 0.8 * eps
    assert torch.allclose(output_of("score", prediction, level), (0.6 * x0 - xt) / 0.64, rtol=0, atol=1e-14)


@pytest.mark.parametrize("data_std", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("sigma", [0.002, 0.3, 80.0])
def test_f_is_edms_network_behind_its_skip_connection(data_std, sigma):
    """x0 = c_skip y + c_out F (2206.00364, table 1)."""
    skip = data_std**2 / (sigma**2 + data_std**2)
    out = sigma * data_std / math.hypot(sigma, data_std)
    x0, eps = pair()
    level, prediction = Level(0.5, 1.0, sigma), Prediction(x0, eps)
    raw = output_of("F", prediction, level, data_std=data_std)
    assert torch.allclose(skip * (x0 + sigma * eps) + out * raw, x0, rtol=0, atol=1e-9)


def test_f_is_minus_v_of_trig_on_scaled_data():
    x0, eps = pair()
    level = Trig(0.5).level(0.4)
    angle = 0.2 * math.pi
    raw = output_of("F", Prediction(x0, eps), level, data_std=0.5)
    v = math.cos(angle) * eps - math.sin(angle) * x0 / 0.5
    assert torch.allclose(raw, -v, rtol=0, atol=1e-14)


def test_v_is_solved_off_the_circle_by_its_closed_form():
    x0, eps = pair()
    alpha, sigma = 1.3, 0.4
    v, xt = alpha * eps - sigma * x0, alpha * x0 + sigma * eps
    found, total = predict("v", xt, v, Level(0.5, alpha, sigma)), alpha**2 + sigma**2
    assert torch.allclose(found.x0, (alpha * xt - sigma * v) / total, rtol=0, atol=1e-14)
    assert torch.allclose(found.eps, (sigma * xt + alpha * v) / total, rtol=0, atol=1e-14)


@kinds
@pytest.mark.parametrize("level", [Level(0.5, 0.6, 0.8), Level(0.4, 0.7, 0.4), Level(0.01, 1.0, 1e-3)])
def test_weights_of_x0_say_the_same(kind, level):
    of_sample, of_output = x0_weights(kind, level)
    x0, eps = pair()
    output = output_of(kind, Prediction(x0, eps), level)
    found = of_sample * (level.alpha * x0 + level.sigma * eps) + of_output * output
    assert torch.allclose(found, x0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["x0", "v", "flow", "F"])
@pytest.mark.parametrize("level", [DATA, NOISE])
def test_weights_of_x0_are_finite_at_the_ends(kind, level):
    assert all(math.isfinite(weight) for weight in x0_weights(kind, level))


def test_an_infinite_score_is_refused():
    x0, eps = pair()
    with pytest.raises(InputError, match="infinite at sigma = 0"):
        predict("score", x0, eps, DATA)


def test_unknown_kinds_are_refused():
    x0, eps = pair()
    for ask in (
        lambda: predict("odd", x0, eps, Level(0.3, 0.6, 0.8)),
        lambda: output_of("odd", Prediction(x0, eps), Level(0.3, 0.6, 0.8)),
        lambda: x0_weights("odd", Level(0.3, 0.6, 0.8)),
    ):
        with pytest.raises(InputError, match="'odd'"):
            ask()


@kinds
def test_predictions_keep_the_type_of_the_sample(kind):
    x0, eps = (tensor.half() for tensor in pair())
    found = predict(kind, x0, eps, Level(0.5, 0.6, 0.8))
    assert (found.x0.dtype, found.eps.dtype) == (torch.float16, torch.float16)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_kind_of_an_edm_network_can_be_copied(sign):
    kind = EDMOutput(0.5, sign)
    twin = copy.deepcopy(kind)
    assert twin == kind
    assert (twin.data_std, twin.sign) == (0.5, sign)
