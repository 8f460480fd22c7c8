"""Running text, whose batches go on where those before have ended."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lit_seq2seq.nn import EncoderDecoder
from lit_seq2seq.nn.network import Carried
from lit_seq2seq.training.objectives import Loss
from lit_seq2seq.training.resuming import of_all_processes
from lit_seq2seq.types import Batch, UserError, Value


class Reading:
    """Goes on with each batch of running text where the batch before has ended.

    Training and evaluation each have one, as an evaluation comes between two batches of training.
    """

    def __init__(self) -> None:
        self._carried: Carried | None = None
        self._restored: list[Tensor] = []

    def loss(self, network: EncoderDecoder, batch: Batch, smoothing: float = 0.0) -> Loss:
        """Compute the cross-entropy of a batch of running text; `smoothing` is that of labels."""
        assert batch.target is not None
        begun = network.begin(batch.source)
        before = self._before(begun) if batch.piece else begun
        total, nll, self._carried = network.read_on(batch.target, before, smoothing)
        for tensor in tensors_of(begun) if batch.piece else ():
            if tensor.requires_grad:  # processes wait for a gradient of every parameter, also of a learned beginning
                total = total + 0 * tensor.sum()
        return Loss(total, nll, batch.target.total)

    def _before(self, begun: Carried) -> Carried:
        if self._carried is not None:
            return self._carried
        if not self._restored:
            raise UserError("the batches begin within running text: let their loader begin where the text does")
        saved, self._restored = iter(self._restored), []
        return begun.map(lambda tensor: next(saved).to(tensor.device))

    def states(self) -> list[list[Tensor]]:
        """Return what each process remembers; to be called by all of them."""
        return of_all_processes([] if self._carried is None else [one.cpu() for one in tensors_of(self._carried)])

    def restore(self, states: Sequence[list[Tensor]], rank: int) -> None:
        """Remember what a process had in mind."""
        self._carried, self._restored = None, states[rank] if rank < len(states) else []


def tensors_of(value: Value) -> list[Tensor]:
    """List the tensors of a value, in the order of `map`."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    value.map(note)
    return found
