"""Encoder, decoder and output layer put together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.attention_losses import AttentionLoss
from lit_seq2seq.nn.auxiliary import Auxiliary
from lit_seq2seq.nn.decoders.base import Decoder, DecoderOutput, DecoderShape, DecoderState
from lit_seq2seq.nn.encoders.base import Encoder, EncoderShape
from lit_seq2seq.nn.output import GivenOutput, Output, OutputLayer
from lit_seq2seq.nn.second_pass import SecondPass
from lit_seq2seq.nn.shortlist import Shortlisted
from lit_seq2seq.types import Encoded, Padded, Shared, Source, SpecialIds, StepOutput, UserError, Value

EncoderFactory = Callable[[Any], Encoder]  # from `Feature.size`
DecoderFactory = Callable[[int, EncoderShape], Decoder]
OutputFactory = Callable[[DecoderShape, int, nn.Embedding | None], Output]
AttentionLossFactory = Callable[[], AttentionLoss]
AuxiliaryFactory = Callable[[EncoderShape, int, int], Auxiliary]
SecondPassFactory = Callable[[int, EncoderShape], SecondPass]
Tie = Literal["none", "target", "all"]


@dataclass(frozen=True)
class Carried(Value):
    """Where a network stands in running text, between one piece and the next.

    Attributes:
        last: `(B,)` the symbol that each piece ended with.
        state: of the decoder that has read all before it.
    """

    last: Tensor
    state: DecoderState


class Network(nn.Module, ABC):
    """What search, evaluation and training ask of a network.

    Attributes:
        specials: ids of the special target symbols.
    """

    specials: SpecialIds

    @property
    @abstractmethod
    def copies(self) -> bool:
        """Whether the output copies symbols of the source."""

    @property
    def transducer(self) -> Any:
        """See `Decoder.transducer`; `None` of several networks."""
        return None

    def forced_align(self, encoded: Encoded, target: Padded) -> Tensor:
        """Find where targets are written; see `EncoderDecoder.forced_align`.

        Raises:
            UserError: there are no alignments.
        """
        raise UserError("several models together have no alignments: ask one of them")

    def passes(self, encoded: Encoded, target: Padded, names: Sequence[str]) -> dict[str, Tensor]:
        """Rate targets by other parts of the network; see `EncoderDecoder.passes`.

        Raises:
            UserError: it lacks one.
        """
        raise UserError("several models together have no second pass: leave Rescoring out")

    @abstractmethod
    def encode(self, source: Source) -> Encoded:
        """Encode a batch of sources."""

    @abstractmethod
    def start(self, encoded: Encoded, candidates: Padded | None = None) -> Any:
        """Make the first state of the search; see `SearchState`.

        Args:
            encoded: from `encode`.
            candidates: `(B, C)` ids among which each source's output is chosen: `step` then takes and scores places
                among them, not ids.

        Raises:
            UserError: the output layer has to know all symbols.
        """

    def blind(self, encoded: Encoded) -> Any:
        """Make the first state of a decoder that its source tells nothing: the internal language model."""

        def nothing(tensor: Tensor) -> Tensor:
            return torch.zeros_like(tensor) if tensor.is_floating_point() else tensor

        return self.start(encoded.map(nothing))

    @abstractmethod
    def step(self, tokens: Tensor, state: Any) -> StepOutput[Any]:
        """Read one token per hypothesis; the step function for `lit_seq2seq.search`."""

    @abstractmethod
    def frames(self, encoded: Encoded) -> Padded | None:
        """Compute log-probabilities of symbols at each encoder position, `(B, S, V)`; `None` without CTC."""

    @abstractmethod
    def expect_early(self, who: str) -> None:
        """Check that outputs can begin before the source has ended.

        Raises:
            UserError: they cannot; the message begins with `who`, which asks for it.
        """

    @abstractmethod
    def needed(self, positions: int) -> int:
        """Tell how many positions of the source the first `positions` of the memory need.

        Where each needs the whole source, those that they stand for count.
        """

    @torch.no_grad()
    def nll(self, source: Source, target: Padded, reach: Tensor | None = None) -> Tensor:
        """Sum the negative log-likelihoods of the real target tokens, in nats; `reach` as of `EncoderDecoder.teach`."""
        return -self.score(source, target, reach).sum()

    @abstractmethod
    def score(self, source: Source, target: Padded, reach: Tensor | None = None) -> Tensor:
        """Compute the log-probability of every token of given targets: `(B, T)`, zero at padding; see `nll`."""


class EncoderDecoder(Network):
    """A sequence-to-sequence model, `p(y|x) = prod_t p(y_t | y_<t, encode(x))` (Sutskever et al., Cho et al. 2014).

    Args:
        source_size: number of source symbols, or size of the source's feature vectors; of several sources each by name.
        target_size: number of target symbols.
        encoder: makes the encoder from the source size.
        decoder: makes the decoder from the target size and the encoder's shape.
        tie_embeddings: share no weights, those of target embedding and output layer, or of the source embedding too.
        specials: ids of the special target symbols.
        output: makes the output layer from the decoder's shape, the target size and the embedding it shares.
        attention_losses: makes each of the terms that are added to the loss.
        auxiliary: makes what else predicts the target, from the encoder's shape, the target size and the padding id.
        second_pass: makes a second decoder, which rates outputs, from the target size and the encoder's shape.

    Raises:
        ValueError: embeddings that cannot be tied, or a part that needs attention where there is none.
    """

    def __init__(
        self,
        source_size: int | Mapping[str, int],
        target_size: int,
        encoder: EncoderFactory,
        decoder: DecoderFactory,
        *,
        tie_embeddings: Tie = "none",
        specials: SpecialIds = SpecialIds(),  # noqa: B008  (immutable)
        output: OutputFactory = OutputLayer,
        attention_losses: Sequence[AttentionLossFactory] = (),
        auxiliary: AuxiliaryFactory | None = None,
        second_pass: SecondPassFactory | None = None,
    ) -> None:
        super().__init__()
        self.specials = specials
        self.encoder = encoder(source_size)
        self.decoder = decoder(target_size, self.encoder.shape)
        self.decoder.specials = specials
        target = self.decoder.embedding
        if tie_embeddings == "all":
            source = self.encoder.token_embedding
            if source is None or source.weight.shape != target.weight.shape:
                came = "none" if source is None else tuple(source.weight.shape)
                raise ValueError(
                    f"tie_embeddings: all needs source and target embeddings of one shape, got {came} and "
                    f"{tuple(target.weight.shape)}: use a shared vocabulary and equal embedding_dim"
                )
            source.weight = target.weight
        tied = None if tie_embeddings == "none" else target
        self.output = output(self.decoder.shape, target_size, tied)
        if self.decoder.predicts:
            if type(self.output) is not OutputLayer or tied is not None:
                name = type(self.decoder).__name__
                raise ValueError(f"{name} predicts symbols by itself: leave out output and tie_embeddings")
            self.output = GivenOutput()
        terms = nn.ModuleList(make() for make in attention_losses)
        self.attention_losses = cast("Sequence[AttentionLoss]", terms)
        if attention_losses and self.decoder.attention_module is None:
            raise ValueError(
                "attention_losses need attention, but the decoder has none: give it one, or leave them out"
            )
        for name, other in {"auxiliary": auxiliary, "second_pass": second_pass}.items():
            if other is not None and self.output.copies:
                raise ValueError(f"{name} knows no symbols beyond the vocabulary: leave it out, or use OutputLayer")
        self.auxiliary = None if auxiliary is None else auxiliary(self.encoder.shape, target_size, specials.pad)
        self.second_pass = None if second_pass is None else second_pass(target_size, self.encoder.shape)
        if self.second_pass is not None:
            self.second_pass.decoder.specials = specials
        for part in self.modules():
            for name in ("dropout", "state_dropout"):
                share = getattr(part, name, 0.0)
                if isinstance(share, int | float) and not 0 <= share < 1:
                    raise ValueError(f"{name} of {type(part).__name__} must be from 0 to below 1, got {share}")

    @property
    def copies(self) -> bool:
        """Whether the output layer copies symbols of the source."""
        return self.output.copies

    @property
    def transducer(self) -> Any:
        """That of the decoder."""
        return self.decoder.transducer

    def encode(self, source: Source) -> Encoded:
        """Encode a batch of sources; one that several examples share is encoded once."""
        if isinstance(source, Shared):
            return self.encode(source.distinct).select(source.index)
        encoded: Encoded = self.encoder(source)
        return replace(encoded, copies=source.copies)

    def start(self, encoded: Encoded, candidates: Padded | None = None) -> DecoderState:
        """Make the decoder's first state; see `Network.start`."""
        state = self.decoder.start(encoded)
        if candidates is None:
            return state
        size = self.decoder.embedding.num_embeddings
        return replace(state, candidates=Shortlisted.of(candidates, size, self.output.restricted))

    def step(self, tokens: Tensor, state: DecoderState) -> StepOutput[DecoderState]:
        """Read one token per hypothesis; the step function for `lit_seq2seq.search`."""
        known = state.candidates
        output, state = self.decoder.step(self.readable(tokens) if known is None else known.read(tokens), state)
        log_probs = self.output.log_probs(output, state.copies) if known is None else known.log_probs(output.features)
        return StepOutput(log_probs, state, output.attention, fresh=True)

    def expect_early(self, who: str) -> None:
        """Check encoder, bridge and decoder; see `Network.expect_early`."""
        encoder, decoder = self.encoder, self.decoder
        reason = ""
        if encoder.reach(1) is None:
            reason = f"{type(encoder).__name__} needs the whole source: {encoder.cure}"
        elif decoder.bridge.reads_end:
            reason = f"{type(decoder.bridge).__name__} reads its end: set bridge to ZeroBridge or LearnedBridge"
        elif decoder.use_summary or (decoder.attention_module is None and not decoder.predicts):
            reason = "the decoder looks at its end: give it attention, and set use_summary to false"
        if reason:
            raise UserError(f"{who} writes before the source has ended, but {reason}")

    def needed(self, positions: int) -> int:
        """Ask the encoder; see `Network.needed`."""
        return self.encoder.reach(positions) or self.encoder.span(positions)

    def frames(self, encoded: Encoded) -> Padded | None:
        """Compute log-probabilities of symbols at each encoder position, `(B, S, V)`; `None` without CTC."""
        return None if self.auxiliary is None else self.auxiliary.frames(encoded.memory)

    @torch.no_grad()
    def forced_align(self, encoded: Encoded, target: Padded) -> Tensor:
        """Find where given targets are written: the best path of the model through all alignments (Viterbi 1967).

        Args:
            encoded: from `encode`.
            target: ids that end with EOS.

        Returns:
            `(B, T)` the position of the memory at which each symbol is written, EOS at the last; by CTC, where the
            decoder has no alignments, the first of each symbol's, and -1 for a target that has no path.

        Raises:
            UserError: the model has no alignments.
        """
        found = self.decoder.forced_align(self.shift(target), target, self.start(encoded))
        if found is None and self.auxiliary is not None:
            found = self.auxiliary.forced_align(encoded.memory, target)
        if found is None:
            raise UserError(
                f"{type(self.decoder).__name__} has no alignments: train a TransducerDecoder or HardMonotonicDecoder, "
                "or set model.auxiliary to CTC"
            )
        return found

    @torch.no_grad()
    def passes(self, encoded: Encoded, target: Padded, names: Sequence[str]) -> dict[str, Tensor]:
        """Compute the log-probabilities of whole targets by other parts of the network.

        Args:
            encoded: from `encode`.
            target: ids that end with EOS.
            names: of the parts: `second_pass`, `auxiliary`.

        Returns:
            By name, `(B,)`.

        Raises:
            UserError: the network lacks one, or it cannot tell.
        """
        found = {}
        for name in names:
            part = getattr(self, name)
            found[name] = None if part is None else part.log_probs(encoded, target)
            if found[name] is None:
                example = {"second_pass": "SecondPass", "auxiliary": "CTC"}[name]
                raise UserError(
                    f"Rescoring needs model.{name}, by which this model cannot rate outputs: train with "
                    f"model.{name}=lit_seq2seq.nn.{example}, or set its weight to 0"
                )
        return cast("dict[str, Tensor]", found)

    def readable(self, tokens: Tensor) -> Tensor:
        """Replace copied symbols beyond the vocabulary, which have no embedding, by the unknown symbol."""
        if not self.output.copies:
            return tokens
        return tokens.masked_fill(tokens >= self.decoder.embedding.num_embeddings, self.specials.unk)

    def shift(self, target: Padded) -> Tensor:
        """Turn targets `y_1 .. y_n EOS` into decoder inputs `BOS y_1 .. y_n`, `(B, T)`."""
        bos = target.values.new_full((target.values.shape[0], 1), self.specials.bos)
        return torch.cat([bos, self.readable(target.values[:, :-1])], dim=1)

    def begin(self, source: Source) -> Carried:
        """Stand at the beginning of running text, before BOS."""
        state = self.start(self.encode(source))
        return Carried(torch.full_like(source.lengths, self.specials.bos), state)

    def read_on(self, target: Padded, before: Carried, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor, Carried]:
        """Compute the loss of pieces of running text, `(B, T)`, in which any EOS is followed by a text that begins.

        Pieces read one after the other are as one pass over the whole text; gradients end where a piece begins
        (truncated backpropagation through time, Mikolov et al. 2010).

        Args:
            target: the pieces, padded only where a text is at its end.
            before: from `begin`, or what the call for the pieces before has returned.
            label_smoothing: probability mass spread over the vocabulary.

        Returns:
            The sum to minimise; without gradient, that of plain negative log-likelihoods, and where the next pieces go
            on.
        """
        inputs = torch.cat([before.last[:, None], target.values[:, :-1]], dim=1)  # (B, T)
        inputs = inputs.masked_fill(inputs == self.specials.eos, self.specials.bos)  # as each text by itself
        output, state = self.decoder.run(inputs, before.state)
        loss, nll = self.output.loss(output, target, None, label_smoothing)
        return loss, nll, Carried(target.values[:, -1], state.map(Tensor.detach))

    def teach(
        self, encoded: Encoded, target: Padded, inputs: Tensor | None = None, reach: Tensor | None = None
    ) -> DecoderOutput:
        """Run the decoder over a target, up to the output layer.

        Args:
            encoded: from `encode`.
            target: ids that end with EOS.
            inputs: `(B, T)` ids of the vocabulary to read instead of `shift(target)`.
            reach: `(T,)` how many positions of its source each step may look at; `None`: all.
        """
        state = self.start(encoded) if reach is None else self.start(encoded).narrowed(reach)
        output: DecoderOutput = self.decoder(self.shift(target) if inputs is None else inputs, state)
        return output

    def forward(self, source: Source, target: Padded, reach: Tensor | None = None) -> Tensor:
        """Score every symbol at every target position: `(B, T, V)`, whose softmax are the probabilities."""
        return self.output.scores(self.teach(self.encode(source), target, reach=reach), source.copies)

    @torch.no_grad()
    def nll(self, source: Source, target: Padded, reach: Tensor | None = None) -> Tensor:
        """Sum the negative log-likelihoods of the real target tokens, in nats; see `teach`."""
        output = self.teach(self.encode(source), target, reach=reach)
        return self.output.loss(output, target, source.copies, 0.0)[1]

    @torch.no_grad()
    def score(self, source: Source, target: Padded, reach: Tensor | None = None) -> Tensor:
        """Compute the log-probability of every token of given targets: `(B, T)`, zero at padding; see `teach`."""
        return self.likelihoods(self.encode(source), target, reach)

    def likelihoods(self, encoded: Encoded, target: Padded, reach: Tensor | None = None) -> Tensor:
        """Compute the log-probability of every token of given targets, with gradient: `(B, T)`, zero at padding."""
        return self.output.likelihoods(self.teach(encoded, target, reach=reach), target, encoded.copies)
