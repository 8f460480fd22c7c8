import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_seq2seq.data.batching import BucketBatchSampler, Position
from lit_seq2seq.types import UserError


def lengths(count=3000, seed=0):
    rng = np.random.default_rng(seed)
    source = rng.lognormal(np.log(14), 0.4, count).astype(np.int32).clip(1, 100) + 1
    return source, (source * rng.lognormal(0, 0.2, count)).astype(np.int32) + 1


def tokens(batch, source, target):
    return len(batch) * (source[batch].max() + target[batch].max())


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("budget", [{"max_tokens": 1000}, {"batch_size": 7}, {"max_tokens": 1000, "batch_size": 7}])
def test_every_epoch_covers_every_row_once_within_the_budget(world_size, budget, shuffle):
    source, target = lengths(600)
    ranks = [
        BucketBatchSampler(source, target, **budget, shuffle=shuffle, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for epoch in range(2):
        for sampler in ranks:
            sampler.set_epoch(epoch)
        batches = [list(sampler) for sampler in ranks]
        assert [len(mine) for mine in batches] == [len(ranks[0])] * world_size
        assert sorted(row for mine in batches for batch in mine for row in batch) == list(range(len(source)))
        for batch in (batch for mine in batches for batch in mine):
            assert len(batch) <= budget.get("batch_size", len(source))
            assert tokens(batch, source, target) <= budget.get("max_tokens", 10**9)


def test_a_token_budget_gives_few_sizes():
    source, target = lengths(20_000)
    sizes = [len(batch) for batch in BucketBatchSampler(source, target, max_tokens=3000)]
    whole = [size for size in sizes if size in (*range(16), *range(16, 32, 2), *range(32, 64, 4), *range(64, 512, 8))]
    assert len(whole) > 0.95 * len(sizes)
    exact = [len(batch) for batch in BucketBatchSampler(source, target, batch_size=27)]
    assert exact.count(27) > 0.95 * len(exact)


@settings(max_examples=80, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=40),
    world_size=st.integers(1, 4),
    max_tokens=st.one_of(st.none(), st.integers(1, 200)),
    batch_size=st.integers(1, 9),
    epoch=st.integers(0, 5),
)
def test_small_sets_are_covered_too(pairs, world_size, max_tokens, batch_size, epoch):
    source, target = np.array(pairs, dtype=np.int32).T
    if len(source) < world_size:
        return
    ranks = [
        BucketBatchSampler(source, target, max_tokens, batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in ranks]
    assert {len(mine) for mine in batches} == {len(ranks[0])}
    assert sorted(row for mine in batches for batch in mine for row in batch) == list(range(len(source)))
    assert all(batch for mine in batches for batch in mine)


def test_an_epoch_depends_on_seed_and_number_only():
    source, target = lengths()

    def epoch(seed, number):
        sampler = BucketBatchSampler(source, target, max_tokens=1000, seed=seed)
        sampler.set_epoch(number)
        return list(sampler)

    assert epoch(0, 1) == epoch(0, 1)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)
    assert {tuple(sorted(batch)) for batch in epoch(0, 0)}.isdisjoint({tuple(sorted(b)) for b in epoch(0, 1)})


def test_padding_is_small():
    source, target = lengths(20_000)
    for shuffle, share in ((False, 0.06), (True, 0.11)):
        batches = list(BucketBatchSampler(source, target, max_tokens=4096, shuffle=shuffle))
        real = source.sum() + target.sum()
        assert 1 - real / sum(tokens(batch, source, target) for batch in batches) < share


def test_longest_first():
    source, target = lengths()
    for epoch in range(3):
        sampler = BucketBatchSampler(source, target, batch_size=16, longest_first=True)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        sizes = [tokens(batch, source, target) for batch in batches]
        assert sizes[0] == max(sizes)
        assert sizes != sorted(sizes, reverse=True)


def test_without_shuffling_epochs_are_equal_and_lengths_rise():
    source, target = lengths()
    sampler = BucketBatchSampler(source, target, batch_size=16, shuffle=False)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == first
    means = [source[batch].mean() for batch in first]
    assert means[0] == min(means)
    assert means[-1] == max(means)


def test_indices_name_the_rows():
    sampler = BucketBatchSampler(np.array([3, 3]), np.array([3, 3]), batch_size=1, indices=np.array([7, 9]))
    assert sorted(sampler) == [[7], [9]]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("budget", [{"max_tokens": 1000}, {"batch_size": 20}])
def test_groups_stay_together_within_the_budget(budget, world_size):
    source, target = lengths()
    groups = np.random.default_rng(1).integers(1000, size=3000)  # 3 examples each, on average
    ranks = [
        BucketBatchSampler(source, target, **budget, rank=rank, world_size=world_size, groups=groups)
        for rank in range(world_size)
    ]
    for epoch in range(3):
        for sampler in ranks:
            sampler.set_epoch(epoch)
        batches = [batch for sampler in ranks for batch in sampler]
        assert sorted(row for batch in batches for row in batch) == list(range(3000))
        found = [set(groups[batch].tolist()) for batch in batches]
        assert sum(map(len, found)) == len(np.unique(groups))
        for batch, numbers in zip(batches, found, strict=True):
            if len(numbers) > 1:
                assert len(batch) <= budget.get("batch_size", 3000)
                assert tokens(batch, source, target) <= budget.get("max_tokens", 10**9)


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_of_any_length_cover_every_row_once(world_size):
    source, target = np.full(1000, 16), np.repeat([4, 40], 500)
    options = {"batch_size": 50, "by_length": False, "world_size": world_size, "groups": np.arange(1000) // 2}
    samplers = [BucketBatchSampler(source, target, rank=rank, **options) for rank in range(world_size)]
    batches = [batch for sampler in samplers for batch in sampler]
    assert sorted(row for batch in batches for row in batch) == list(range(1000))
    assert all(len(set(target[batch])) == 2 for batch in batches if len(batch) > 20)
    assert max(map(len, batches)) <= 50
    assert len({len(sampler) for sampler in samplers}) == 1


def test_the_time_grows_with_the_rows_and_not_with_their_square():
    def seconds(rows):
        source, target = lengths(rows)
        start = time.process_time()
        assert sum(map(len, BucketBatchSampler(source, target, max_tokens=8192))) == rows
        return time.process_time() - start

    assert seconds(100_000) < 40 * min(seconds(10_000) for _ in range(3))


def test_mistakes_are_explained():
    ones = np.ones(3, dtype=np.int32)
    with pytest.raises(UserError, match="expected max_tokens or batch_size, but both are unset"):
        BucketBatchSampler(ones, ones)
    with pytest.raises(UserError, match="expected at least 4 examples for 4 processes, but got 3"):
        BucketBatchSampler(ones, ones, batch_size=1, world_size=4)


def epochs(source, target, world_size, number, start=None, **options):
    """The batches of each process in one epoch."""
    start = {} if start is None else {"start": start}
    ranks = [
        BucketBatchSampler(source, target, rank=rank, world_size=world_size, **options, **start)
        for rank in range(world_size)
    ]
    for sampler in ranks:
        sampler.set_epoch(number)
    return [list(sampler) for sampler in ranks]


@pytest.mark.parametrize("number", [0, 3])
def test_a_resumed_epoch_goes_on_with_the_next_batch(number):
    source, target = lengths(300)
    for world_size in (1, 2):
        whole = epochs(source, target, world_size, number, batch_size=7)
        start = Position(number, 5, world_size)
        left = epochs(source, target, world_size, number, start, batch_size=7)
        assert left == [batches[5:] for batches in whole]
        seeds = [[batch.seed for batch in batches] for batches in left]
        assert seeds == [[batch.seed for batch in batches[5:]] for batches in whole]
        assert len({seed for row in seeds for seed in row}) == sum(map(len, left))
        after = epochs(source, target, world_size, number + 1, start, batch_size=7)
        assert after == epochs(source, target, world_size, number + 1, batch_size=7)


@pytest.mark.parametrize("number", [0, 1])
def test_processes_get_batches_of_similar_size(number):
    """A step takes as long as its largest batch."""
    source, target = lengths(3000)
    for world_size in (2, 8):
        shares = epochs(source, target, world_size, number, max_tokens=600)
        sizes = np.array([[source[batch].max() * len(batch) for batch in batches] for batches in shares])
        assert sizes.max(0).sum() < 1.15 * sizes.mean(0).sum()


@settings(max_examples=80, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=4, max_size=60),
    runs=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 30)), min_size=1, max_size=4),
    now=st.integers(1, 4),
    batch_size=st.integers(1, 9),
    number=st.integers(0, 2),
)
def test_other_numbers_of_processes_go_on_without_a_row_lost_or_repeated(pairs, runs, now, batch_size, number):
    source, target = np.array(pairs, dtype=np.int32).T
    position, used = Position(number), []
    for world_size, taken in runs:
        there = epochs(source, target, world_size, number, position, batch_size=batch_size)
        taken = min(taken, len(there[0]))
        used += [row for batches in there for batch in batches[:taken] for row in batch]
        position = position.after(taken, world_size)
    left = epochs(source, target, now, number, position, batch_size=batch_size)
    assert len({len(batches) for batches in left}) == 1
    assert all(batch for batches in left for batch in batches)
    rest = [row for batches in left for batch in batches for row in batch]
    if len(source) - len(used) >= now:
        assert sorted(used + rest) == list(range(len(source)))
    else:
        assert rest == []
