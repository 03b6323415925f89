"""The order of training data: shuffled epochs without gaps, from the seed and the step alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from logsnr.data.sampler import batch_indices

SIZES = st.tuples(st.integers(0, 2**40), st.integers(1, 20), st.integers(1, 15))


def stream(seed, batch_size, num_items, steps):
    return torch.cat([batch_indices(seed, step, batch_size, num_items) for step in range(steps)])


@given(SIZES)
def test_each_epoch_is_a_permutation(sizes):
    seed, batch_size, num_items = sizes
    order = stream(seed, batch_size, num_items, -(-3 * num_items // batch_size))[: 3 * num_items]
    for epoch in order.split(num_items):
        assert epoch.sort().values.tolist() == list(range(num_items))


@given(SIZES, st.integers(0, 10**6))
def test_a_batch_is_a_pure_function_of_seed_and_step(sizes, step):
    seed, batch_size, num_items = sizes
    first = batch_indices(seed, step, batch_size, num_items)
    batch_indices(seed + 1, step + 7, batch_size, num_items + 3)
    torch.rand(3)
    assert first.shape == (batch_size,)
    assert torch.equal(first, batch_indices(seed, step, batch_size, num_items))


@given(SIZES)
def test_the_order_does_not_depend_on_the_batch_size(sizes):
    seed, batch_size, num_items = sizes
    total = 4 * batch_size
    assert torch.equal(stream(seed, batch_size, num_items, 4), stream(seed, 1, num_items, total))


def test_a_batch_crosses_epochs():
    batch = batch_indices(0, 1, 8, 10)
    assert torch.equal(batch[:2], stream(0, 10, 10, 1)[8:])
    assert torch.equal(batch[2:], stream(0, 10, 10, 2)[10:16])


def test_a_batch_larger_than_the_data_repeats_it():
    counts = batch_indices(0, 0, 25, 10).bincount(minlength=10)
    assert sorted(counts.tolist()) == [2] * 5 + [3] * 5


def test_epochs_and_seeds_differ():
    orders = [batch_indices(seed, epoch, 50, 50).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4
    assert list(range(50)) not in orders


def test_changing_a_batch_does_not_change_the_order():
    batch_indices(5, 0, 10, 10).zero_()
    assert sorted(batch_indices(5, 0, 10, 10).tolist()) == list(range(10))
