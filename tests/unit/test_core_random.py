"""Seeds and noise: a row is a pure function of its own seed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logsnr.core.errors import InputError
from logsnr.core.random import NoisePath, generator, parse_seeds, sample_noise

SHAPE = (4, 8, 8)
RANGES = st.tuples(st.integers(0, 2**63 - 100), st.integers(0, 60))


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", [7]),
        ("0-3", [0, 1, 2, 3]),
        ("0-2,12", [0, 1, 2, 12]),
        ("12,0-2", [12, 0, 1, 2]),
        ("5-5", [5]),
        ("3,3,1-3", [3, 3, 1, 2, 3]),
        (" 0 - 2 , 4 ", [0, 1, 2, 4]),
        (str(2**63 - 1), [2**63 - 1]),
    ],
)
def test_seeds_are_read_in_the_order_written(text, seeds):
    assert parse_seeds(text) == seeds


@given(st.lists(RANGES, min_size=1, max_size=6))
def test_seeds_round_trip(ranges):
    text = ",".join(f"{first}-{first + more}" if more else str(first) for first, more in ranges)
    assert parse_seeds(text) == [seed for first, more in ranges for seed in range(first, first + more + 1)]


@pytest.mark.parametrize(
    "text", ["", " ", "a", "1,", ",1", "3-1", "-1", "1-", "1.5", "1-2-3", "0-1000000", str(2**63), "9" * 5000, "1;2"]
)
def test_bad_seeds_are_refused_in_one_line(text):
    with pytest.raises(InputError, match="0-7,12") as caught:
        parse_seeds(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text):
    try:
        seeds = parse_seeds(text)
    except InputError:
        return
    assert seeds
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("stream", [None, 0, 3])
def test_a_row_does_not_depend_on_batch_or_order(stream):
    alone = sample_noise([5], SHAPE, stream=stream)[0]
    together = sample_noise(range(8), SHAPE, stream=stream)
    backwards = sample_noise(list(reversed(range(8))), SHAPE, stream=stream)
    assert torch.equal(alone, together[5])
    assert torch.equal(together, backwards.flip(0))


def test_without_a_stream_a_row_is_what_diffusers_draws():
    expected = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(11))
    assert torch.equal(sample_noise([11], SHAPE), expected)


def test_streams_and_seeds_are_independent():
    rows = [sample_noise([seed], SHAPE, stream=stream).flatten() for seed in (0, 1) for stream in (None, 0, 1)]
    correlations = torch.corrcoef(torch.stack(rows))
    assert (correlations - torch.eye(len(rows))).abs().max() < 0.25


def test_noise_is_standard_normal_and_float32():
    noise = sample_noise(range(64), SHAPE, stream=2)
    assert noise.dtype == torch.float32
    assert noise.shape == (64, *SHAPE)
    assert abs(float(noise.mean())) < 0.03
    assert abs(float(noise.std()) - 1) < 0.03


def test_no_seeds_give_no_rows():
    assert sample_noise([], SHAPE).shape == (0, *SHAPE)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sample_noise([1, 2], SHAPE, stream=1)
    assert torch.equal(before, torch.get_rng_state())


def test_keys_of_words_and_numbers_name_different_streams():
    keys = [(1,), (1, "order", 0), (1, "order", 1), (1, "draws", 0), ("1", "order", 0), (2, "order", 0)]
    first = [int(torch.randint(2**62, (1,), generator=generator(*key))) for key in keys]
    again = [int(torch.randint(2**62, (1,), generator=generator(*key))) for key in keys]
    assert first == again
    assert len(set(first)) == len(keys)


TIMES = (-130.0, -64.0, -3.2, -0.01, 0.0, 0.5, 0.502, 2.5, 63.9, 64.0, 90.125)


def test_a_path_depends_on_seed_and_time_alone():
    """Not on what was asked before, although values on the way are kept."""
    forwards, backwards = NoisePath(5, SHAPE), NoisePath(5, SHAPE)
    expected = [forwards(time) for time in TIMES]
    for time, value in reversed(list(zip(TIMES, expected, strict=True))):
        assert torch.equal(backwards(time), value)
        assert torch.equal(NoisePath(5, SHAPE)(time), value)
    assert not torch.equal(NoisePath(6, SHAPE)(0.5), NoisePath(5, SHAPE)(0.5))
    assert expected[0].dtype == torch.float32


def test_a_path_is_standard_normal_with_the_correlation_of_a_brownian_motion():
    """e^(-time / 2) B(e^time): exp(-gap / 2) apart, within a block of 64 and across its ends."""
    path = NoisePath(1, (40_000,))
    values = torch.stack([path(time) for time in TIMES])
    moments = values @ values.T / values.shape[1]
    gaps = (torch.tensor(TIMES)[:, None] - torch.tensor(TIMES)).abs()
    assert (moments - (-gaps / 2).exp()).abs().max() < 0.02
    assert values.mean(1).abs().max() < 0.02
    assert (values.pow(4).mean(1) - 3).abs().max() < 0.15


def test_a_path_is_continuous():
    path = NoisePath(1, (10_000,))
    for gap in (1e-2, 1e-4, 1e-6):
        assert float((path(0.7 + gap) - path(0.7)).std()) < 1.1 * math.sqrt(gap)
