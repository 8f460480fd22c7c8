import math

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from lit_seq2seq.schedules import InverseSquareRoot, OneCycle
from lit_seq2seq.types import UserError


def optimizer(lr: float = 0.5) -> SGD:
    return SGD([torch.zeros(1)], lr=lr)


def rates(schedule: LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return found


def test_inverse_square_root_follows_the_formula() -> None:
    expected = [0.5 * min(t / 4, math.sqrt(4 / t)) for t in range(1, 21)]
    assert rates(InverseSquareRoot(optimizer(), 4), 20) == pytest.approx(expected)


@pytest.mark.parametrize("total", [10, 101])
def test_one_cycle_equals_that_of_torch(total: int) -> None:
    torchs = OneCycleLR(optimizer(), 0.5, total, pct_start=0.3, div_factor=25, final_div_factor=40)
    warmup = (0.3 * total - 1) / (total - 1)  # torch counts the share of steps with the first one left out
    ours = OneCycle(optimizer(), total, warmup=warmup, start=1 / 25, end=1 / 1000)
    assert rates(ours, total - 1) == pytest.approx(rates(torchs, total - 1), rel=1e-9)


def test_one_cycle_stays_at_its_end() -> None:
    after = rates(OneCycle(optimizer(), 10, end=0.01), 30)[10:]
    assert after == pytest.approx([0.005] * 20)


@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
def test_one_cycle_has_one_peak_whatever_the_warmup(warmup: float) -> None:
    found = rates(OneCycle(optimizer(), 21, warmup=warmup), 21)
    peak = found.index(max(found))
    assert peak == round(20 * warmup)
    assert found[peak] == pytest.approx(0.5)
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


@pytest.mark.parametrize("make", [lambda o: OneCycle(o, 12), lambda o: InverseSquareRoot(o, 3)])
def test_a_restored_schedule_goes_on(make, tmp_path) -> None:
    whole = rates(make(optimizer()), 12)
    first = make(optimizer())
    rates(first, 5)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make(optimizer())
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert rates(second, 7)[1:] == pytest.approx(whole[6:])


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="warmup_steps must be at least 1, got 0"):
        InverseSquareRoot(optimizer(), 0)
    with pytest.raises(UserError, match=r"warmup is a share of all steps, between 0 and 1, got 2"):
        OneCycle(optimizer(), 10, warmup=2)


@pytest.mark.parametrize("before", [8, 20, 50])
def test_a_one_cycle_that_is_restored_has_the_length_of_now(before: int) -> None:
    whole = rates(OneCycle(optimizer(), 20), 20)
    first = OneCycle(optimizer(), before)
    rates(first, 7)
    second = OneCycle(optimizer(0.1), 20)
    second.load_state_dict(first.state_dict())
    assert rates(second, 13) == pytest.approx(whole[7:], rel=1e-12)
    unknown = OneCycle(optimizer())
    unknown.load_state_dict(first.state_dict())
    assert unknown.total_steps == before
