"""Cross-entropy with the targets."""

from __future__ import annotations

from lit_seq2seq.inference.model import Seq2SeqModel
from lit_seq2seq.nn import DecoderOutput, EncoderDecoder
from lit_seq2seq.training.objectives.base import Loss, Objective
from lit_seq2seq.types import Batch, Encoded, Padded, Source, UserError


class CrossEntropy(Objective):
    """Cross-entropy of the targets, `-sum_t log p(y_t | y_<t, x)`, with the network's other losses.

    Every step of the decoder reads the true symbol before (teacher forcing). An objective that changes what is read
    overrides `read`; one that adds to the loss, `of`.
    """

    @property
    def reads_on(self) -> bool:
        """Yes, but for a class derived from it, which computes something else."""
        return type(self) is CrossEntropy

    def expect_no_more(self, network: EncoderDecoder, advice: str) -> None:
        """Refuse a network with losses that have a part in cross-entropy alone, which has none in the sum."""
        if idle := [name for name in ("auxiliary", "second_pass", "attention_losses") if getattr(network, name)]:
            raise UserError(f"{type(self).__name__} alone does not train what model.{idle[0]} names: {advice}")

    def forward(self, model: Seq2SeqModel, batch: Batch) -> Loss:
        """Compute the loss of a batch with targets."""
        assert batch.target is not None
        return self.of(model.net, batch.source, batch.target)

    def of(self, network: EncoderDecoder, source: Source, target: Padded) -> Loss:
        """Compute the loss of targets that end with EOS."""
        encoded = network.encode(source)
        return self.join(network, encoded, self.read(network, encoded, target), target)

    def read(self, network: EncoderDecoder, encoded: Encoded, target: Padded) -> DecoderOutput:
        """Run the decoder over a target."""
        return network.teach(encoded, target)

    def join(self, network: EncoderDecoder, encoded: Encoded, output: DecoderOutput, target: Padded) -> Loss:
        """Add up the terms of the loss."""
        total, nll = network.output.loss(output, target, encoded.copies, self.label_smoothing)
        if network.auxiliary is not None:
            share = network.auxiliary.weight
            total = (1 - share) * total + share * network.auxiliary.loss(encoded.memory, target)
        if network.second_pass is not None:
            share = network.second_pass.weight
            total = (1 - share) * total + share * network.second_pass.loss(encoded, target, self.label_smoothing)
        for attention_loss in network.attention_losses:
            assert output.attention is not None
            total = total + attention_loss.of(output.attention, target, encoded.memory.mask)
        return Loss(total, nll, target.total)
