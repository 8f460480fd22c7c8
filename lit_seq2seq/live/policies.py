"""Writing as a policy allows while the input is still coming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.features import Processor
from lit_seq2seq.live.roads import EncodedRoad, Reader, RowState, StreamOutput, joined, rows
from lit_seq2seq.search import GenerationConfig, check_attention, check_scores, prefix_of, stream
from lit_seq2seq.search.task import Host
from lit_seq2seq.types import Hypothesis, StepOutput, UserError


class Writing(NamedTuple):
    """Where a stream under a policy stands: its encoder, all memory vectors `(S, M)`, what writes, tokens so far."""

    encoder: RowState
    memory: Array
    writer: PolicyWriter
    written: int = 0


class Deciding(Protocol):
    """A decoder under a policy, in torch or as graphs; memories are all memory vectors `(S, M)` of each stream.

    Attributes:
        nothing: the memory vectors `(0, M)` of a stream of which nothing has been read.
    """

    nothing: Array

    def start(self) -> Any:
        """Return what it has made of an output without tokens: a value with a row for each stream."""

    def step(self, memories: list[Array], past: Any, seen: list[int], last: list[int]) -> tuple[StepOutput[Any], Any]:
        """Read the last token of each stream, given what was made of those before, and how much was seen then."""

    def decode(self, memories: list[Array], config: GenerationConfig) -> list[list[Hypothesis]]:
        """Search for outputs of sources that have ended."""


class PolicyRoad(EncodedRoad):
    """Writes as `generation.policy` allows, a token of each stream at a time; the output is that of the whole input.

    Args:
        processor: see `Road`.
        config: see `Road`.
        encoder: what reads.
        decoder: what writes.
        device: of tensors; `None`: arrays of NumPy.
        host: the model, for scorers.

    Raises:
        UserError: an option needs a beam from the first token on.
    """

    def __init__(
        self,
        processor: Processor,
        config: GenerationConfig,
        encoder: Reader,
        *,
        decoder: Deciding,
        device: Any,
        host: Host,
    ) -> None:
        super().__init__(processor, config, encoder)
        needs = ["force_words"] * bool(config.force_words)
        needs += [type(one).__name__ for one in config.constraints if one.needs_beam]
        if needs:
            raise UserError(
                f"{needs[0]} needs a beam from the first token on, but a stream writes each token at once: leave it out"
            )
        self.decoder, self.device, self.host = decoder, device, host
        self.past = rows(decoder.start(), 1)[0]

    def begin(self) -> Writing:
        """Start encoder and writer."""
        return Writing(self.first, self.decoder.nothing, PolicyWriter(self))

    def read(
        self, states: Sequence[Writing], pieces: Sequence[Sequence[Array]], last: Sequence[bool]
    ) -> list[StreamOutput]:
        """Encode together, and write together; see `Road.read`."""
        memory, encoders = self.encode([state.encoder for state in states], pieces, last)
        lengths = memory.lengths.tolist()
        for row, (state, ends) in enumerate(zip(states, last, strict=True)):
            state.writer.hear(_follow(state.memory, memory.values[row, : lengths[row]]), ends)
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
        made, after = self.decoder.step(
            [writer.visible for writer in writers],
            joined([writer.past for writer in writers]),
            [writer.seen for writer in writers],
            [writer.last for writer in writers],
        )
        check_attention(made.attention, self.config)
        check_scores(arrays.of(made.log_probs).amax(made.log_probs, 1).tolist())
        for writer, past, output in zip(writers, rows(after, len(writers)), _apart(made), strict=True):
            writer.take(output, past)

    def _search(self, writers: Sequence[PolicyWriter]) -> None:
        """Search with a beam for the end of sources that have ended."""
        if self.config.num_beams == 1 or not writers:
            return
        found = self.decoder.decode([writer.memory for writer in writers], self.config)
        for writer, [best, *_] in zip(writers, found, strict=True):
            writer.ids, writer.done = best.tokens.tolist(), True


def _follow(first: Array, second: Array) -> Array:
    return arrays.of(first).concat([first, second])


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
        config, target = road.config, road.processor.target
        assert config.policy is not None
        self.policy, self.greedy = config.policy, config.num_beams == 1
        self.ids: list[int] = []
        self.past, self.memory, self.seen = road.past, road.decoder.nothing, 0
        self.ended = self.done = self._looked = False
        self._error: Exception | None = None
        self._bos = target.specials.bos
        self._output: StepOutput[Any] | None = None
        first: Any = None
        self._tokens = stream(
            self._step,
            first,
            batch_size=1,
            specials=target.specials,
            config=replace(config.quick(1), policy=None, coverage_penalty=0.0),
            prefix=prefix_of(config, None, target, 1),
            device=road.device,
            vocabulary=target,
            host=road.host,
        )

    def hear(self, memory: Array, ends: bool) -> None:
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
    def visible(self) -> Array:
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

    def take(self, output: StepOutput[Any], past: RowState) -> None:
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

    def _step(self, tokens: Array, state: Any) -> StepOutput[Any]:
        """Give `stream` what the model has made of the last token."""
        assert self._output is not None
        return self._output
