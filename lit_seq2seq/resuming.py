"""What Lightning leaves out of a checkpoint or does not take up again."""

from __future__ import annotations

import random
from typing import TypedDict

import numpy as np
import torch
import torch.distributed
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.progress import _ProcessedTracker, _ReadyCompletedTracker
from torch import Tensor


class RandomState(TypedDict):
    """The states of Python's, NumPy's and torch's generators in one process."""

    python: tuple[int, tuple[int, ...], float | None]
    numpy: dict[str, object]
    torch: Tensor
    cuda: list[Tensor]


def random_states() -> list[RandomState]:
    """Return the state of each process; to be called by all of them."""
    numbers = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(numbers, dict)
    numbers["state"]["key"] = numbers["state"]["key"].tolist()
    mine = RandomState(
        python=random.getstate(),
        numpy=numbers,
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    states: list[RandomState] = [mine] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, mine)
    return states


def restore_random_state(states: list[RandomState], rank: int) -> None:
    """Go on with the state of a process; a process that was not there before keeps its own."""
    if rank >= len(states):
        return
    state = states[rank]
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numbers = {**state["numpy"]}
    inner = dict(numbers["state"])  # type: ignore[call-overload]
    numbers["state"] = {**inner, "key": np.array(inner["key"], np.uint32)}
    np.random.set_state(numbers)  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def counts(tracker: _ReadyCompletedTracker) -> _ProcessedTracker:
    """Narrow the type of what counts epochs or batches."""
    assert isinstance(tracker, _ProcessedTracker)
    return tracker


def begin_next_epoch_if_finished(loop: _FitLoop) -> None:
    """Do not end an epoch twice: under `max_steps`, Lightning 2.6 takes one that is finished for one to be resumed."""
    current, total = counts(loop.epoch_progress.current), counts(loop.epoch_progress.total)
    if current.ready == current.processed:
        current.completed, total.completed = current.processed, total.processed
        loop._restarting = loop.epoch_loop.restarting = False
        loop.reset_restart_stage()
