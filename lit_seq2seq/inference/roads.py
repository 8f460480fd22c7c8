"""Ways to write while the input is still coming: at frames, as a policy allows, or by agreement of whole outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_seq2seq.features import FeatureStream
from lit_seq2seq.features.feature import Array
from lit_seq2seq.inference.model import ModelHost, Seq2SeqModel
from lit_seq2seq.reranking import reranked
from lit_seq2seq.search import GenerationConfig, check_attention, check_scores, prefix_of, stream
from lit_seq2seq.search.alignments import AlignmentSearch
from lit_seq2seq.types import CellState, Encoded, Hypothesis, Padded, StepOutput, UserError


class StreamOutput(NamedTuple):
    """What a stream has written after a piece of its input.

    Attributes:
        state: of the stream.
        ids: symbols that are new, and final.
        done: whether the output has ended.
    """

    state: Any
    ids: Sequence[int] = ()
    done: bool = False


class Road(ABC):
    """A way to write while the input is still coming.

    Args:
        model: what reads and writes.
        config: options of generation.

    Attributes:
        grows: whether what is held of a stream grows with it.
        again: whether a piece gives all positions so far, not those that are new.
    """

    grows: bool = True
    again: ClassVar[bool] = False

    def __init__(self, model: Seq2SeqModel, config: GenerationConfig) -> None:
        self.model, self.config, self.device = model, config, model.device

    @abstractmethod
    def reader(self, sampling_rate: int | None) -> FeatureStream:
        """Return what turns the pieces of one input into arrays."""

    @abstractmethod
    def begin(self) -> Any:
        """Return the state of a stream of which nothing has been read."""

    @abstractmethod
    def read(
        self, states: Sequence[Any], pieces: Sequence[Sequence[Array]], last: Sequence[bool]
    ) -> list[StreamOutput]:
        """Read on in each stream, and write what can be written; may be called again with the same if it fails.

        Args:
            states: of the streams.
            pieces: what their readers have returned since.
            last: whether a stream ends with that.
        """


class Row(NamedTuple):
    """The state of one of the streams that were computed together, which are taken apart only where they part."""

    batch: Any
    place: int
    size: int


def rows(batch: Any, size: int) -> list[Row]:
    """Return the states of the streams of a batch."""
    return [Row(batch, place, size) for place in range(size)]


def joined(states: Sequence[Row]) -> Any:
    """Put the states of streams together, taking those that were computed together in one go."""
    batches: dict[int, list[int]] = {}
    for at, state in enumerate(states):
        batches.setdefault(id(state.batch), []).append(at)
    parts = []
    for places in batches.values():
        first, wanted = states[places[0]], [states[at].place for at in places]
        whole = wanted == list(range(first.size))
        parts.append(first.batch if whole else first.batch.select(np.array(wanted)))
    made = parts[0] if len(parts) == 1 else parts[0].joined(parts)
    order = np.array([at for places in batches.values() for at in places])
    return made if len(parts) == 1 else made.select(order.argsort())


class EncodedRoad(Road):
    """Base of those whose encoder reads in pieces, of all streams together."""

    def __init__(self, model: Seq2SeqModel, config: GenerationConfig, who: str) -> None:
        super().__init__(model, config)
        model.searched.expect_early(who)
        self.encoder, self.first = model.net.encoder, rows(model.net.encoder.begin(1), 1)[0]

    def reader(self, sampling_rate: int | None) -> FeatureStream:
        """Let the source feature read in pieces."""
        return self.model.processor.source_feature.in_pieces(sampling_rate)

    def encode(
        self, states: Sequence[Row], pieces: Sequence[Sequence[Array]], last: Sequence[bool]
    ) -> tuple[Padded, list[Row]]:
        """Return the new memory vectors of streams, and the states of their encoders."""
        feature, device = self.model.processor.source_feature, self.device
        whole = [some[0] if len(some) == 1 else np.concatenate(some) for some in pieces]
        source = feature.collate(whole).to(device)
        assert isinstance(source, Padded)
        memory, after = self.encoder.extend(joined(states), source, torch.tensor(list(last), device=device))
        return memory, rows(after, len(states))


def unknown(model: Seq2SeqModel, memory: Padded) -> Encoded:
    """Return sources of whose ends nothing is known, but memory vectors."""
    shape, values = model.net.encoder.shape, memory.values
    final = CellState.of(values.new_zeros(len(values), shape.final_layers, size) for size in shape.sizes)
    return Encoded(memory, final)


class Writing(NamedTuple):
    """Where a stream under a policy stands: its encoder, all memory vectors `(S, M)`, what writes, tokens so far."""

    encoder: Row
    memory: Tensor
    writer: PolicyWriter
    written: int = 0


class PolicyRoad(EncodedRoad):
    """Writes as `generation.policy` allows, a token of each stream at a time; the output is that of the whole input.

    Raises:
        UserError: the model cannot write before its source has ended.
    """

    def __init__(self, model: Seq2SeqModel, config: GenerationConfig) -> None:
        super().__init__(model, config, "generation.policy")
        self.nothing = next(model.net.parameters()).new_zeros(1, model.net.encoder.shape.memory_size)
        blank = unknown(model, Padded(self.nothing[None], torch.ones(1, dtype=torch.long, device=model.device)))
        with torch.no_grad():
            self.past = rows(model.net.start(blank).past, 1)[0]
        self.host = ModelHost(model, blank)

    def begin(self) -> Writing:
        """Start encoder and writer."""
        return Writing(self.first, self.nothing[:0], PolicyWriter(self))

    def read(
        self, states: Sequence[Writing], pieces: Sequence[Sequence[Array]], last: Sequence[bool]
    ) -> list[StreamOutput]:
        """Encode together, and write together; see `Road.read`."""
        memory, encoders = self.encode([state.encoder for state in states], pieces, last)
        lengths = memory.lengths.tolist()
        for row, (state, ends) in enumerate(zip(states, last, strict=True)):
            state.writer.hear(torch.cat([state.memory, memory.values[row, : lengths[row]]]), ends)
        writers = [state.writer for state in states]
        while ready := [writer for writer in writers if writer.ready]:
            self._write(ready)
        self._search([writer for writer in writers if writer.ended])
        found = []
        for state, encoder, writer in zip(states, encoders, writers, strict=True):
            after = Writing(encoder, writer.memory, writer, len(writer.ids))
            found.append(StreamOutput(after, writer.ids[state.written :], writer.done))
        return found

    def _write(self, writers: Sequence[PolicyWriter]) -> None:
        """Let each read its last token, seeing what the policy shows it, and choose the next."""
        network = self.model.net
        source = _padded([writer.visible for writer in writers])
        seen = torch.tensor([writer.seen for writer in writers], device=self.device)
        state = network.start(unknown(self.model, source)).after(joined([writer.past for writer in writers]), seen)
        last = torch.tensor([writer.last for writer in writers], device=self.device)
        made = network.step(last, state)
        check_attention(made.attention, self.config)
        check_scores(made.log_probs.amax(dim=1).tolist())
        for writer, past, output in zip(writers, rows(made.state.past, len(writers)), _apart(made), strict=True):
            writer.take(output, past)

    def _search(self, writers: Sequence[PolicyWriter]) -> None:
        """Search with a beam for the end of sources that have ended."""
        if self.config.num_beams == 1 or not writers:
            return
        encoded = unknown(self.model, _padded([writer.memory for writer in writers]))
        for writer, [best, *_] in zip(writers, self.model.decode(encoded, self.config), strict=True):
            writer.ids, writer.done = best.tokens.tolist(), True


def _padded(memories: Sequence[Tensor]) -> Padded:
    """Put memory vectors `(S, M)` side by side."""
    lengths = torch.tensor([len(one) for one in memories], device=memories[0].device)
    return Padded(torch.nn.utils.rnn.pad_sequence(list(memories), batch_first=True), lengths)


def _apart(made: StepOutput[Any]) -> list[StepOutput[Any]]:
    """Take the outputs of a step apart."""
    looked = made.attention
    return [
        StepOutput(own, None, None if looked is None else looked[row : row + 1], made.fresh)
        for row, own in enumerate(made.log_probs[:, None])
    ]


class PolicyWriter:
    """Chooses the tokens of one stream, each by what the policy has read before it.

    Args:
        road: what computes.

    Attributes:
        ids: the tokens.
        memory: all memory vectors that there are, `(S, M)`.
        ended: whether no more will come.
        past: what the decoder has made of the tokens before the last.
        seen: number of memory vectors that it saw then.
        done: whether the output has ended.
    """

    def __init__(self, road: PolicyRoad) -> None:
        model, config = road.model, road.config
        assert config.policy is not None
        self.policy, self.greedy = config.policy, config.num_beams == 1
        self.ids: list[int] = []
        self.past, self.memory, self.seen = road.past, road.nothing[:0], 0
        self.ended = self.done = self._looked = False
        self._error: Exception | None = None
        self._bos = model.searched.specials.bos
        self._output: StepOutput[Any] | None = None
        first: Any = None
        self._tokens = stream(
            self._step,
            first,
            batch_size=1,
            specials=model.searched.specials,
            config=replace(config.quick(1), policy=None),
            prefix=prefix_of(config, None, model.processor.target, 1),
            device=model.device,
            vocabulary=model.processor.target,
            host=road.host,
        )

    def hear(self, memory: Tensor, ends: bool) -> None:
        """Take all memory vectors `(S, M)`, and whether no more will come."""
        if self._error is not None:
            raise self._error
        self._looked = self._looked and len(memory) == len(self.memory) and not ends
        self.memory, self.ended = memory, ends

    @property
    def last(self) -> int:
        """The token that is read next."""
        return self.ids[-1] if self.ids else self._bos

    @property
    def visible(self) -> Tensor:
        """What the policy shows of the memory."""
        return self.memory if self.policy.attends else self.memory[: self._reach]

    @property
    def ready(self) -> bool:
        """Whether what has been read may be enough for the next token."""
        if self.done or self.ended:
            return not self.done and self.greedy
        if self.policy.attends:
            return len(self.memory) > 0 and not self._looked
        return len(self.memory) >= self._reach

    @property
    def _reach(self) -> int:
        return int(self.policy.reach(np.array([len(self.ids)]))[0])

    def take(self, output: StepOutput[Any], past: Row) -> None:
        """Choose a token, unless attention has stopped nowhere and there may be more to look at."""
        self._looked = self.policy.attends and not self.ended
        if self._looked and not bool(output.attention.any()):  # type: ignore[union-attr]
            return
        self._looked, self._output = False, output
        try:
            token = next(self._tokens, None)
        except Exception as error:
            self._error = error
            raise
        self.seen, self.past, self.done = len(self.visible), past, token is None
        if token is not None:
            self.ids.append(token)

    def _step(self, tokens: Tensor, state: Any) -> StepOutput[Any]:
        """Give `stream` what the model has made of the last token."""
        assert self._output is not None
        return self._output


class Listening(NamedTuple):
    """Where a stream of a transducer stands.

    Attributes:
        encoder: state of the encoder.
        search: of the search.
        memory: the memory vectors so far, `(P, M)` of each piece, if outputs will be rescored.
        ids: the symbols that have been written, likewise.
    """

    encoder: Row
    search: Row
    memory: tuple[Tensor, ...] = ()
    ids: tuple[int, ...] = ()


class FrameRoad(EncodedRoad):
    """Writes at each frame what a transducer has found so far in all its beams, of all streams together.

    Where the model's reranker asks for other parts of the model, as `Rescoring` does, what is not certain before the
    source has ended is written by it: the memory is then kept.
    """

    def __init__(self, model: Seq2SeqModel, config: GenerationConfig) -> None:
        super().__init__(model, config, "a stream")
        self.decoder = model.net.decoder.transducer
        target, like = model.processor.target, next(model.net.parameters())
        nothing = Padded(like.new_zeros(1, 1, model.net.encoder.shape.memory_size), torch.ones(1, device=like.device))
        self.reranker, wanted = reranked(config, model.reranker)
        self.grows = self.reranker is not None
        self.search = AlignmentSearch(
            self.decoder,
            wanted,
            target.specials,
            device=model.device,
            vocabulary=target,
            host=ModelHost(model, unknown(model, nothing)),
        )
        self.start = rows(self.search.begin(1), 1)[0]

    def begin(self) -> Listening:
        """Start encoder and search."""
        return Listening(self.first, self.start)

    def read(
        self, states: Sequence[Listening], pieces: Sequence[Sequence[Array]], last: Sequence[bool]
    ) -> list[StreamOutput]:
        """Encode and search; see `Road.read`."""
        memory, encoders = self.encode([one.encoder for one in states], pieces, last)
        searched = joined([one.search for one in states])
        searched = self.search.advance(searched, self.decoder.frames(memory), np.array(last))
        beams = self.search.outputs(searched) if self.reranker is not None and any(last) else []
        taken, after = self.search.take(searched)
        check_scores(after.open.log_probs.flatten().tolist())
        found, searches = [], rows(after, len(states))
        for row, (state, encoder, search, ids) in enumerate(zip(states, encoders, searches, taken, strict=True)):
            now = Listening(encoder, search)
            if self.reranker is not None:
                new = memory.values[row, : int(memory.lengths[row])]
                now = now._replace(memory=(*state.memory, new), ids=(*state.ids, *ids))
                ids = self._rescored(state.ids, beams[row], now) if last[row] and len(beams[row]) > 1 else ids
            found.append(StreamOutput(now, ids, last[row]))
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
        memory = _padded([torch.cat(state.memory)])  # (1, S, M)
        encoded = Encoded(memory, self.encoder.final_state(joined([state.encoder])))
        [rated] = self.model.rated(encoded, [whole], self.reranker.passes)
        best: list[int] = self.reranker.order(rated, None, self.config)[0].tokens.tolist()
        return best[len(before) :]


class Agreement(Road):
    """Writes all that has been read anew, and keeps what several outputs in a row have begun with.

    Local agreement (Liu et al. 2020, https://arxiv.org/abs/2005.11185) for models that need their whole source: what is
    kept begins all later outputs. A longer input takes more time for each piece.

    Args:
        outputs: how many have to agree, from 2.
    """

    again = True

    def __init__(self, model: Seq2SeqModel, config: GenerationConfig, outputs: int = 2) -> None:
        super().__init__(model, replace(config, num_return_sequences=1))
        if outputs < 2:
            raise UserError(f"agreement={outputs}: must be at least 2 outputs")
        self.outputs = outputs
        given = prefix_of(config, None, model.processor.target, 1)
        self.prefix = [] if given is None else given[0].tolist()

    def reader(self, sampling_rate: int | None) -> FeatureStream:
        """Return what encodes again all that has been read."""
        return self.model.processor.source_feature.growing(sampling_rate)

    def begin(self) -> tuple[list[int], list[list[int]]]:
        """Nothing is certain yet, and there is no output before."""
        return [], []

    def read(
        self, states: Sequence[Any], pieces: Sequence[Sequence[Array]], last: Sequence[bool]
    ) -> list[StreamOutput]:
        """Write all outputs together; see `Road.read`."""
        sure = [known for known, _ in states]
        target, device = self.model.processor.target, self.model.device
        prefix = target.collate([np.array(one or self.prefix, np.int32) for one in sure]).to(device).values
        source = self.model.processor.source_feature.collate([some[-1] for some in pieces]).to(device)
        found = self.model.generate(source, self.config, prefix if prefix.shape[1] else None)
        written = []
        for (known, before), [best], ends in zip(states, found, last, strict=True):
            outputs = [*before, best.tokens.tolist()][-self.outputs :]
            agreed = outputs[-1] if ends else common(outputs) if len(outputs) == self.outputs else []
            new = agreed[len(known) :]
            written.append(StreamOutput(([*known, *new], outputs), new, ends))
        return written


def common(sequences: Sequence[Sequence[int]]) -> Sequence[int]:
    """Return the beginning that all sequences share.

    Example:
        >>> common([[4, 5, 6], [4, 5], [4, 5, 7]])
        [4, 5]
    """
    same = (len(set(column)) == 1 for column in zip(*sequences, strict=False))
    return sequences[0][: next((place for place, one in enumerate(same) if not one), min(map(len, sequences)))]


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
        return FrameRoad(model, config)
    return Agreement(model, config, agreement) if config.policy is None else PolicyRoad(model, config)
