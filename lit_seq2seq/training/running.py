"""Running text, whose batches go on where those before have ended."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lit_seq2seq.nn import EncoderDecoder
from lit_seq2seq.nn.network import Carried
from lit_seq2seq.training.objectives import Loss
from lit_seq2seq.training.resuming import of_all_processes
from lit_seq2seq.types import Batch, UserError


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
        before = self._before(network, batch) if batch.piece else network.begin(batch.source)
        total, nll, self._carried = network.read_on(batch.target, before, smoothing)
        return Loss(total, nll, batch.target.total)

    def _before(self, network: EncoderDecoder, batch: Batch) -> Carried:
        if self._carried is not None:
            return self._carried
        if not self._restored:
            raise UserError("the batches begin within running text: let their loader begin where the text does")
        saved, self._restored = iter(self._restored), []
        return network.begin(batch.source).map(lambda tensor: next(saved).to(tensor.device))

    def states(self) -> list[list[Tensor]]:
        """Return what each process remembers; to be called by all of them."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor.cpu())
            return tensor

        if self._carried is not None:
            self._carried.map(note)
        return of_all_processes(found)

    def restore(self, states: Sequence[list[Tensor]], rank: int) -> None:
        """Remember what a process had in mind."""
        self._carried, self._restored = None, states[rank] if rank < len(states) else []
