"""What Lightning leaves out of a checkpoint or does not take up again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch
import torch.distributed
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from lit_seq2seq.data.loading import counts
from lit_seq2seq.schedules import length_of
from lit_seq2seq.settings.spec import import_class
from lit_seq2seq.types import UserError

_PROGRESS = {
    "last_epoch",
    "base_lrs",
    "lr_lambdas",
    "best",
    "num_bad_epochs",
    "cooldown_counter",
    "total_steps",
    "T_cur",
    "T_i",
}
"""What changes in a schedule while it runs, or with the length of the run."""
_WITHOUT_EFFECT = ("dropout", "chunk_size", ".name", "pretrained", "trainable_blocks")
"""Settings of a network that do not change what its weights mean."""
_START_ANEW = (
    "to change them, start from the weights: lit-seq2seq average --checkpoints CKPT --output DIR, then "
    "--model.init_from DIR"
)


T = TypeVar("T")


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
    return of_all_processes(mine)


def of_all_processes(mine: T) -> list[T]:
    """Return what each process gives here; to be called by all of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    found = [mine] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, mine)
    return found


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


def begin_next_epoch_if_finished(loop: _FitLoop) -> None:
    """Do not end an epoch twice: under `max_steps`, Lightning 2.6 takes one that is finished for one to be resumed."""
    current, total = counts(loop.epoch_progress.current), counts(loop.epoch_progress.total)
    if current.ready == current.processed:
        current.completed, total.completed = current.processed, total.processed
        loop._restarting = loop.epoch_loop.restarting = False
        loop.reset_restart_stage()


def tell_other_network(mine: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Warn where the settings of a network are not those that weights were trained with, though they fit it."""
    parts = ("encoder", "decoder", "output", "auxiliary", "second_pass")
    found = [one for name in parts if name in saved for one in _differences(mine.get(name), saved[name], name)]
    if found:
        rank_zero_warn(f"the weights were trained with other settings: {', '.join(found)}")


def _differences(mine: Any, saved: Any, name: str) -> Iterator[str]:
    both = isinstance(mine, Mapping) and isinstance(saved, Mapping)
    classes = [_class(one) for one in (mine, saved)] if both and "class_path" in mine.keys() & saved.keys() else []
    if classes and classes[0] == classes[1]:
        found = import_class(mine["class_path"], (mine["class_path"],))
        plain = {key: one.default for key, one in signature(found).parameters.items()}
        given, before = ({**plain, **(one.get("init_args") or {})} for one in (mine, saved))
        yield from _differences(given, before, name)
    elif both and not classes:
        for key in sorted(mine.keys() & saved.keys()):
            yield from _differences(mine[key], saved[key], f"{name}.{key}")
    elif classes or (_simple(mine) and _simple(saved) and mine != saved and not name.endswith(_WITHOUT_EFFECT)):
        told = classes or [mine, saved]
        yield f"{name} {told[1]!s:.60} (not {told[0]!s:.60})"


def _simple(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def tell_changes(optimizer: Optimizer, scheduler: LRScheduler | None, checkpoint: Mapping[str, Any]) -> None:
    """Say which settings of the optimizer and its schedule are not used, as a checkpoint brings its own.

    Raises:
        UserError: they are of other kinds, so that the states in the checkpoint are not theirs.
    """
    described = checkpoint["hyper_parameters"]
    for name, part in (("optimizer", optimizer), ("lr_scheduler", scheduler)):
        saved_kind, kind = _class(described.get(name)), None if part is None else type(part).__name__
        if saved_kind != kind:
            raise UserError(f"the checkpoint has the state of {name} {saved_kind}, not of {kind}: {_START_ANEW}")
    mine, saved = optimizer.param_groups, checkpoint["optimizer_states"][0]["param_groups"]
    if len(mine) != len(saved):
        raise UserError(f"the checkpoint was made with other lr_factors: {_START_ANEW}")
    changes: dict[str, tuple[object, object]] = {}
    for now, before in zip(mine, saved, strict=True):
        changes |= _changes(now, before, {"params", "lr"})
    if scheduler is not None:
        settings = {name: value for name, value in scheduler.state_dict().items() if not name.startswith("_")}
        changes |= _changes(settings, checkpoint["lr_schedulers"][0], _PROGRESS)
    if changes:
        told = ", ".join(f"{name} {before} (not {now})" for name, (before, now) in changes.items())
        rank_zero_warn(f"resumed with the optimizer and the schedule of the checkpoint: {told}; {_START_ANEW}")


def _changes(now: Mapping[str, Any], before: Mapping[str, Any], but: set[str]) -> dict[str, tuple[object, object]]:
    found = {name: (_plain(before[name]), _plain(now[name])) for name in now.keys() & before.keys() - but}
    return {name.removeprefix("initial_"): pair for name, pair in sorted(found.items()) if pair[0] != pair[1]}


def _class(description: Mapping[str, str] | None) -> str | None:
    return None if description is None else description["class_path"].rpartition(".")[2]


def _plain(value: Any) -> object:
    return list(value) if isinstance(value, tuple) else value


def tell_length(optimizer: Optimizer, scheduler: LRScheduler, *, steps: int, before: int | None, done: int) -> None:
    """Say what becomes of the learning rate where the schedule and the run are not of the same length.

    Args:
        optimizer: of the run.
        scheduler: its schedule, restored.
        steps: optimizer steps of the whole run.
        before: how many they were when it was interrupted; `None` if it was not, or nobody knows.
        done: optimizer steps so far.

    Raises:
        UserError: the run is resumed to go on for longer, but the schedule is at its end, and the rate at almost 0.
    """
    name, length = type(scheduler).__name__, length_of(scheduler)
    longer = before is not None and steps > before
    if length == steps:
        if before not in (None, steps):
            rank_zero_warn(f"the run has {steps} steps now, not {before}: {name} goes on as in a run of {steps}")
        return
    share = max(group["lr"] / group.get("initial_lr", group["lr"] or 1.0) for group in optimizer.param_groups)
    if length is None or steps < length:
        if before is not None and before - 1 <= done < steps - 1 and share < 0.01:
            rank_zero_warn(f"{name} lets the run go on at {share:.3g} of the learning rate; {_START_ANEW}")
        return
    if longer and done >= length - 1 and share < 0.01:
        raise UserError(
            f"{name} came to its end after {length} steps, at {share:.3g} of the learning rate, which would stay so "
            f"up to step {steps}: start from the weights (lit-seq2seq average --checkpoints CKPT --output DIR, then "
            "--model.init_from DIR), or use OneCycle without total_steps, which goes on when resumed for longer"
        )
    if isinstance(scheduler, OneCycleLR):
        raise UserError(
            f"{name} fails after its {length} steps, and the run has {steps}: set total_steps to {steps} from the "
            "start, or use lit_seq2seq.schedules.OneCycle"
        )
    if not hasattr(scheduler, "total_iters"):  # that of a warm-up, say
        rank_zero_warn(
            f"{name} covers {length} of {steps} steps: set it to {steps}, or use OneCycle without total_steps"
        )
