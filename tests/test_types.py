import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_seq2seq.types import Batch, CellState, Encoded, Padded, SpecialIds, UserError, Value


@dataclass(frozen=True)
class Nested(Value):
    tensor: Tensor
    inner: Padded | None = None
    pair: tuple[Tensor | None, ...] = ()
    label: str = ""


def nested() -> Nested:
    inner = Padded(torch.tensor([[1, 2], [3, 0], [0, 0]]), torch.tensor([2, 1, 0]))
    return Nested(torch.arange(3.0), inner, (torch.arange(3) * 10, None), "kept")


def test_map_reaches_every_tensor_and_nothing_else() -> None:
    doubled = nested().map(lambda tensor: tensor * 2)
    assert doubled.tensor.tolist() == [0, 2, 4]
    assert doubled.inner is not None
    assert doubled.inner.values.tolist() == [[2, 4], [6, 0], [0, 0]]
    assert doubled.inner.lengths.tolist() == [4, 2, 0]
    assert doubled.pair[0] is not None
    assert doubled.pair[0].tolist() == [0, 20, 40]
    assert doubled.pair[1] is None
    assert (doubled.label, type(doubled)) == ("kept", Nested)


def test_joined_values_are_the_rows_of_all() -> None:
    joined = Nested.joined([nested(), nested().select(torch.tensor([2, 0]))])
    assert joined.tensor.tolist() == [0, 1, 2, 2, 0]
    assert joined.inner is not None
    assert joined.inner.values.tolist() == [[1, 2], [3, 0], [0, 0], [0, 0], [1, 2]]
    assert joined.inner.lengths.tolist() == [2, 1, 0, 0, 2]
    assert (joined.pair[1], joined.label) == (None, "kept")


def test_map_leaves_the_original_alone() -> None:
    value = nested()
    value.map(lambda tensor: tensor + 1)
    assert value.tensor.tolist() == [0, 1, 2]


def test_select_takes_rows_in_order_and_may_repeat_or_drop_them() -> None:
    chosen = nested().select(torch.tensor([2, 0, 0, 2]))
    assert chosen.tensor.tolist() == [2, 0, 0, 2]
    assert chosen.inner is not None
    assert chosen.inner.lengths.tolist() == [0, 2, 2, 0]
    assert chosen.pair[0] is not None
    assert chosen.pair[0].tolist() == [20, 0, 0, 20]


def test_repeat_repeats_rows_in_place() -> None:
    repeated = nested().repeat(2)
    assert repeated.tensor.tolist() == [0, 0, 1, 1, 2, 2]
    assert repeated.inner is not None
    assert repeated.inner.values.tolist() == [[1, 2], [1, 2], [3, 0], [3, 0], [0, 0], [0, 0]]


def test_to_moves_every_tensor() -> None:
    moved = nested().to("meta")
    assert moved.inner is not None
    assert moved.pair[0] is not None
    assert {t.device.type for t in (moved.tensor, moved.inner.values, moved.inner.lengths, moved.pair[0])} == {"meta"}


@pytest.mark.parametrize("value", [nested(), CellState(torch.zeros(1, 1, 1)), nested().inner, SpecialIds()])
def test_values_are_frozen(value: object) -> None:
    name = dataclasses.fields(value)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, None)


def test_the_mask_of_padded_sequences() -> None:
    padded = Padded(torch.zeros(3, 4, 2), torch.tensor([4, 0, 1]))
    assert padded.mask.tolist() == [[True] * 4, [False] * 4, [True, False, False, False]]
    assert padded.total.item() == 5
    assert padded.mask.sum() == padded.total


def test_a_batch_moves_with_its_texts() -> None:
    source = Padded(torch.ones(2, 3, dtype=torch.long), torch.tensor([3, 1]))
    batch = Batch(source, None, torch.tensor([7, 8]), (("a", "b"), ("c",)), ("x", "y"))
    moved = batch.to("cpu", non_blocking=True)
    assert len(moved) == 2
    assert moved.target is None
    assert (moved.references, moved.texts) == (batch.references, batch.texts)
    assert_close(moved.source.values, source.values)


def test_encoded_selects_its_memory_and_states_together() -> None:
    encoded = Encoded(Padded(torch.rand(3, 2, 4), torch.tensor([2, 1, 2])), CellState(torch.rand(3, 1, 4)))
    chosen = encoded.select(torch.tensor([2, 1]))
    assert_close(chosen.memory.values, encoded.memory.values[[2, 1]])
    assert_close(chosen.final.h, encoded.final.h[[2, 1]])
    assert chosen.final.others == ()


def test_user_errors_are_their_message() -> None:
    with pytest.raises(UserError, match=r"^expected a file, got nothing$"):
        raise UserError("expected a file, got nothing")
