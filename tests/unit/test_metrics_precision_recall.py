"""Precision and recall against the definition, on sets whose answer is known."""

import pytest
import torch

from logsnr.core.errors import InputError
from logsnr.metrics.precision_recall import PrecisionRecall, nearest_distance, precision_recall


def normal(num, size=6, seed=0, shift=0.0):
    return torch.randn(num, size, generator=torch.Generator().manual_seed(seed)) + shift


def by_definition(real, made, k):
    """The definition in float64, all pairs at once."""

    def share(samples, reference):
        samples, reference = samples.double(), reference.double()
        radii = (reference[:, None] - reference[None]).norm(dim=2).sort(1).values[:, k]
        inside = (samples[:, None] - reference[None]).norm(dim=2) <= radii
        return float(inside.any(1).double().mean())

    return PrecisionRecall(share(made, real), share(real, made))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_definition(k):
    real, made = normal(150, seed=1), 0.8 * normal(120, seed=2, shift=0.4)
    found = precision_recall(real, made, k=k)
    assert found == by_definition(real, made, k)
    assert 0 < found.recall < found.precision < 1


def test_three_neighbours_are_the_default():
    real, made = normal(150, seed=1), 0.8 * normal(120, seed=2, shift=0.4)
    assert precision_recall(real, made) == precision_recall(real, made, k=3) != precision_recall(real, made, k=1)


def test_a_set_covers_itself():
    assert precision_recall(normal(80), normal(80)) == PrecisionRecall(1, 1)


def test_disjoint_sets_share_nothing():
    assert precision_recall(normal(80), normal(80, seed=1, shift=100)) == PrecisionRecall(0, 0)


def test_a_dropped_mode_lowers_recall_and_not_precision():
    real = torch.cat([normal(200, seed=1), normal(200, seed=2, shift=50)])
    whole = torch.cat([normal(200, seed=3), normal(200, seed=4, shift=50)])
    before, after = precision_recall(real, whole), precision_recall(real, normal(400, seed=5))
    assert after.precision == pytest.approx(before.precision, abs=0.05)
    assert after.recall == pytest.approx(before.recall / 2, abs=0.05)


def test_invented_samples_lower_precision_and_not_recall():
    real = normal(200, seed=1)
    made = torch.cat([normal(200, seed=2), normal(200, seed=3, shift=50)])
    before, after = precision_recall(real, made[:200]), precision_recall(real, made)
    assert after.precision == pytest.approx(before.precision / 2, abs=0.03)
    assert after.recall == pytest.approx(before.recall, abs=0.05)


def test_swapping_the_sets_swaps_the_figures():
    real, made = normal(100, seed=1), 0.7 * normal(90, seed=2)
    there, back = precision_recall(real, made), precision_recall(made, real)
    assert (there.precision, there.recall) == (back.recall, back.precision)


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 150])
def test_chunks_change_nothing(chunk):
    real, made = normal(150, seed=1), 0.8 * normal(120, seed=2, shift=0.4)
    assert precision_recall(real, made, chunk=chunk) == precision_recall(real, made)


def test_a_large_common_offset_changes_nothing():
    real, made = normal(150, seed=1).double(), 0.8 * normal(120, seed=2, shift=0.4).double()
    moved = precision_recall((real + 1024).float(), (made + 1024).float())
    expected = precision_recall(real, made)
    assert moved.precision == pytest.approx(expected.precision, abs=0.01)
    assert moved.recall == pytest.approx(expected.recall, abs=0.01)


@pytest.mark.parametrize(("num_real", "num_made", "k"), [(3, 50, 3), (50, 3, 3), (0, 50, 3), (50, 50, 0), (50, 50, 50)])
def test_too_few_samples_are_refused(num_real, num_made, k):
    with pytest.raises(InputError, match="too few"):
        precision_recall(normal(num_real), normal(num_made), k=k)


@pytest.mark.parametrize("made", [torch.zeros(50, 5), torch.zeros(50), torch.zeros(50, 6, 1)])
def test_other_dimensions_are_refused(made):
    with pytest.raises(InputError, match="cannot be compared"):
        precision_recall(normal(50), made)
    with pytest.raises(InputError, match="cannot be compared"):
        nearest_distance(made, normal(50))


@pytest.mark.parametrize("chunk", [1, 13, 1000])
def test_nearest_distance_is_the_smallest_of_all(chunk):
    features, reference = normal(70, seed=1), normal(110, seed=2)
    expected = (features[:, None].double() - reference[None].double()).norm(dim=2).min(1).values
    found = nearest_distance(features, reference, chunk=chunk)
    assert found.shape == (70,)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-5)


def test_a_copy_is_at_distance_exactly_zero():
    reference = normal(500, size=64, shift=300)
    assert nearest_distance(reference[::7], reference).tolist() == [0.0] * 72


def test_no_reference_is_refused():
    with pytest.raises(InputError, match="at least one"):
        nearest_distance(normal(5), normal(0))
