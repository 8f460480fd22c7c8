"""Batches that the memory does not hold: their gradient is taken in parts, and is that of the whole."""

import errno
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch.optim import SGD

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.cli import main
from lit_seq2seq.cli.failures import explain
from lit_seq2seq.inference.out_of_memory import lacks_memory
from lit_seq2seq.nn import CTC, CopyOutput, CoverageLoss
from lit_seq2seq.types import Padded, Shared, Sources
from tests.tiny import Trained, make_data, make_model, make_trainer, pairs

ROWS = 11


class Shortage(Callback):
    """A machine whose memory holds no batch of more than `most` rows; of several machines only the last is small."""

    def __init__(self, most: int = 2, backward: bool = False) -> None:
        self.most, self.backward = most, backward
        self.sizes: list[int] = []

    def on_train_start(self, trainer, pl_module):
        if trainer.global_rank == trainer.world_size - 1:
            pl_module.net.encoder.register_forward_hook(self.run_out)

    def run_out(self, encoder, arguments, encoded):
        rows = len(encoded.memory.lengths)
        self.sizes.append(rows)
        if rows > self.most and encoder.training:
            if not self.backward:
                torch.empty(2**50)
            encoded.memory.values.register_hook(lambda _: torch.empty(2**50))


def fit(
    folder: Path, *callbacks: Callback, batch_size: int = 8, trainer: dict[str, object] | None = None, **options: object
) -> LitSeq2Seq:
    """Take one step of gradient descent an epoch, over all rows."""
    model = make_model(optimizer=partial(SGD, lr=1.0), label_smoothing=0.1, **options)
    rows = DatasetDict({"train": Dataset.from_dict(pairs(ROWS))})
    copy = options.get("output") is CopyOutput
    data = make_data(rows, batch_size=batch_size, validation_size=0, test_size=0, copy=copy)
    model.attach(data.processor)
    make_trainer(folder, *callbacks, **{"accumulate_grad_batches": 10, **(trainer or {})}).fit(model, datamodule=data)
    return model


def equal(first: LitSeq2Seq, second: LitSeq2Seq) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:CTC leaves out")
@pytest.mark.parametrize(
    ("options", "backward"),
    [
        ({}, False),
        ({}, True),
        ({"output": CopyOutput}, False),
        ({"auxiliary": CTC}, True),
        ({"attention_losses": [CoverageLoss]}, False),
    ],
    ids=["plain", "plain, backward", "copying", "ctc, backward", "coverage"],
)
def test_the_step_in_parts_is_that_of_the_whole(tmp_path, options, backward):
    whole, shortage = fit(tmp_path, **options), Shortage(backward=backward)
    with pytest.warns(
        UserWarning, match=r"does not suffice for a batch of \d rows and .* lower data.batches.max_tokens"
    ):
        parts = fit(tmp_path, shortage, split_on_oom=True, **options)
    equal(parts, whole)
    assert sum(size for size in shortage.sizes if size <= 2) == ROWS  # each row once


@pytest.mark.filterwarnings("ignore:the memory does not suffice")
def test_a_batch_that_is_known_to_be_too_large_is_not_tried_again(tmp_path):
    shortage, often = Shortage(most=3), {"max_epochs": 20, "gradient_clip_val": 0.1}
    parts = fit(tmp_path, shortage, split_on_oom=True, trainer=often)
    assert 1 <= sum(size > 3 for size in shortage.sizes) <= 3  # of 40 batches
    equal(parts, fit(tmp_path, trainer=often))


def test_enough_memory_changes_nothing(tmp_path):
    often = {"max_epochs": 2, "accumulate_grad_batches": 4}
    first, second = (fit(tmp_path, split_on_oom=split, batch_size=2, trainer=often) for split in (False, True))
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:the memory does not suffice")
def test_a_process_that_runs_short_keeps_no_other_waiting(tmp_path):
    two = {"strategy": DDPStrategy(start_method="forkserver"), "devices": 2}
    parts = fit(tmp_path, Shortage(most=1), batch_size=3, split_on_oom=True, trainer=two)
    equal(parts, fit(tmp_path))


def test_a_row_too_large_ends_with_advice(trained: Trained, tmp_path, capsys):
    short = {"class_path": "tests.test_memory.Shortage", "init_args": {"most": 0}}
    options = [f"--trainer.default_root_dir={tmp_path}", f"--trainer.callbacks+={json.dumps(short)}"]
    for split in ("false", "true"):
        assert main(["fit", "--config", str(trained.recipe), *options, f"--model.split_on_oom={split}"]) == 1
        assert (
            capsys.readouterr().err.splitlines()[-1].startswith("error: out of memory: lower data.batches.max_tokens")
        )


def test_a_part_of_shared_sources_holds_no_others():
    images = Padded(torch.arange(12.0).reshape(4, 3), torch.tensor([3, 2, 3, 1]))
    shared = Shared(Sources({"image": images}), torch.tensor([0, 3, 3, 1, 2]))
    part = shared.select(torch.tensor([4, 1, 2]))
    assert len(part.distinct.lengths) == 2
    assert part.lengths.tolist() == shared.lengths[[4, 1, 2]].tolist()
    values = part.distinct.parts["image"].values[part.index]
    torch.testing.assert_close(values, images.values[[2, 3, 3]])


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (RuntimeError("could not create a primitive"), True),  # of oneDNN
        (RuntimeError("could not create a memory object"), True),
        (RuntimeError("could not execute a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for the LSTM forward propagation primitive."), False),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (
            RuntimeError("[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_a_want_of_memory_is_known_by_what_the_kernels_say(error: Exception, lacks: bool) -> None:
    assert lacks_memory(error) is lacks
    assert ("out of memory" in (explain(error) or "")) is lacks
