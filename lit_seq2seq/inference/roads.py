"""Ways in which a model in torch writes while the input is still coming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_seq2seq.features.feature import Array
from lit_seq2seq.inference.model import ModelHost, Seq2SeqModel
from lit_seq2seq.live.policies import PolicyRoad
from lit_seq2seq.live.roads import Agreement, FrameRoad, Listening, Road, StreamOutput, joined
from lit_seq2seq.nn.network import EncoderDecoder
from lit_seq2seq.reranking import reranked
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.search.alignments import AlignmentSearch
from lit_seq2seq.types import CellState, Encoded, Hypothesis, Padded, StepOutput, UserError


class TorchReader:
    """The encoder of a model, for arrays of NumPy; see `lit_seq2seq.live.roads.Reader`.

    Raises:
        UserError: the model cannot write before its source has ended.
    """

    def __init__(self, model: Seq2SeqModel, who: str) -> None:
        model.searched.expect_early(who)
        self.encoder, self.device = model.net.encoder, model.device

    def begin(self, batch_size: int) -> Any:
        """Start."""
        return self.encoder.begin(batch_size)

    def extend(self, state: Any, piece: Padded, last: Any) -> tuple[Padded, Any]:
        """Read on."""
        return self.encoder.extend(state, piece.to(self.device), torch.tensor(last, device=self.device))


def unknown(model: Seq2SeqModel, memory: Padded) -> Encoded:
    """Return sources of whose ends nothing is known, but memory vectors."""
    shape, values = model.net.encoder.shape, memory.values
    final = CellState.of(values.new_zeros(len(values), shape.final_layers, size) for size in shape.sizes)
    return Encoded(memory, final)


def _padded(memories: Sequence[Tensor]) -> Padded:
    """Put memory vectors `(S, M)` side by side."""
    lengths = torch.tensor([len(one) for one in memories], device=memories[0].device)
    return Padded(torch.nn.utils.rnn.pad_sequence(list(memories), batch_first=True), lengths)


class TorchDecoder:
    """The decoder of a model; see `lit_seq2seq.live.policies.Deciding`."""

    def __init__(self, model: Seq2SeqModel) -> None:
        self.model, self.device, size = model, model.device, model.net.encoder.shape.memory_size
        self.nothing = next(model.net.parameters()).new_zeros(0, size)
        alone = Padded(self.nothing.new_zeros(1, 1, size), torch.ones(1, dtype=torch.long, device=self.device))
        self.blank = unknown(model, alone)

    @torch.no_grad()
    def start(self) -> Any:
        """Start over a source of which nothing is known."""
        return self.model.net.start(self.blank).past

    def step(self, memories: list[Tensor], past: Any, seen: list[int], last: list[int]) -> tuple[StepOutput[Any], Any]:
        """Read the last tokens."""
        network, device = self.model.net, self.device
        state = network.start(unknown(self.model, _padded(memories))).after(past, torch.tensor(seen, device=device))
        made = network.step(torch.tensor(last, device=device), state)
        return made, made.state.past

    def decode(self, memories: list[Tensor], config: GenerationConfig) -> list[list[Hypothesis]]:
        """Search."""
        return self.model.decode(unknown(self.model, _padded(memories)), config)


class Kept(NamedTuple):
    """What is kept of a stream that will be rescored: memory vectors `(P, M)` of each piece, and symbols written."""

    memory: tuple[Tensor, ...] = ()
    ids: tuple[int, ...] = ()


class TransducerRoad(FrameRoad):
    """That of a transducer in torch.

    Where the model's reranker asks for other parts of the model, as `Rescoring` does, what is not certain before the
    source has ended is written by it: the memory is then kept.
    """

    def __init__(self, model: Seq2SeqModel, config: GenerationConfig) -> None:
        reader = TorchReader(model, "a stream")
        self.model, self.decoder = model, model.net.decoder.transducer
        target, like = model.processor.target, next(model.net.parameters())
        nothing = Padded(like.new_zeros(1, 1, model.net.encoder.shape.memory_size), torch.ones(1, device=like.device))
        self.reranker, wanted = reranked(config, model.reranker)
        self.grows = self.reranker is not None
        host, device = ModelHost(model, unknown(model, nothing)), model.device
        search = AlignmentSearch(self.decoder, wanted, target.specials, device=device, vocabulary=target, host=host)
        super().__init__(model.processor, config, reader, search=search)

    def begin(self) -> Listening:
        """Start encoder and search."""
        return super().begin()._replace(kept=Kept())

    def frames(self, memory: Padded) -> Padded:
        """Let the joint layer read memory vectors."""
        frames: Padded = self.decoder.frames(memory)
        return frames

    def checked(
        self, before: Sequence[Listening], written: list[StreamOutput], memory: Padded, search: Any
    ) -> list[StreamOutput]:
        """Rescore the outputs of streams that end; see `FrameRoad.checked`."""
        if self.reranker is None:
            return written
        beams, found = self.search.outputs(search) if any(one.done for one in written) else [], []
        for row, (state, one) in enumerate(zip(before, written, strict=True)):
            new = memory.values[row, : int(memory.lengths[row])]
            kept = Kept((*state.kept.memory, new), (*state.kept.ids, *one.ids))
            now = one.state._replace(kept=kept)
            ids = self._rescored(state.kept.ids, beams[row], now) if one.done and len(beams[row]) > 1 else one.ids
            found.append(StreamOutput(now, ids, one.done))
        return found

    def _rescored(self, before: tuple[int, ...], beam: list[Hypothesis], state: Listening) -> list[int]:
        """Return what follows symbols that have been written in the output that the reranker finds the best."""
        assert self.reranker is not None
        known, scores = torch.tensor(before, dtype=torch.long), torch.zeros(len(before))
        whole = [
            replace(
                one,
                tokens=torch.cat([known, torch.as_tensor(one.tokens)]),
                token_scores=torch.cat([scores, torch.as_tensor(one.token_scores)]),
            )
            for one in beam
        ]
        memory = _padded([torch.cat(state.kept.memory)])  # (1, S, M)
        encoded = Encoded(memory, self.model.net.encoder.final_state(joined([state.encoder])))
        [rated] = self.model.rated(encoded, [whole], self.reranker.passes)
        best: list[int] = self.reranker.order(rated, None, self.config)[0].tokens.tolist()
        return best[len(before) :]


def writes_early(model: Seq2SeqModel) -> bool:
    """Whether a model, with its own options, writes before its source has ended and decodes nothing anew."""
    try:
        road = road_of(model, model.generation, 2)
        road.reader(None)
    except UserError:
        return False
    return not road.again


def road_of(model: Seq2SeqModel, config: GenerationConfig, agreement: int) -> Road:
    """Return the way in which a model writes while it reads.

    Raises:
        UserError: it has none with these options.
    """
    writes, (reranker, _) = model.searched.transducer is not None, reranked(config, model.reranker)
    if reranker is not None and not (writes and reranker.passes):
        raise UserError(
            f"{type(reranker).__name__} chooses among whole outputs, but a stream writes while it reads: leave the "
            "reranker out, or use lit-seq2seq generate"
        )
    if writes:
        return TransducerRoad(model, config)
    if config.policy is not None:
        if not isinstance(model.searched, EncoderDecoder):
            raise UserError("a policy leads one model, but these are several: give one, or set policy to null")
        reader, decoder = TorchReader(model, "generation.policy"), TorchDecoder(model)
        host = ModelHost(model, decoder.blank)
        return PolicyRoad(model.processor, config, reader, decoder=decoder, device=model.device, host=host)

    def write(source: Any, prefix: Array | None, options: GenerationConfig) -> list[list[Hypothesis]]:
        given = None if prefix is None else torch.as_tensor(prefix, device=model.device)
        return model.generate(source.to(model.device), options, given)

    return Agreement(model.processor, config, write, agreement)
