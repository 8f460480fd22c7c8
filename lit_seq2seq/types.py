"""The values that flow between layers: small, immutable, and able to move, reorder and repeat themselves.

Everything in the package may import this module, which needs no torch; it imports nothing of the package but `arrays`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeAlias, TypedDict, TypeVar

from lit_seq2seq import arrays

if TYPE_CHECKING:
    import torch
    from torch import Tensor


T = TypeVar("T")
R = TypeVar("R")


class UserError(Exception):
    """A mistake that the user can mend: wrong path, column, option, file or setting.

    The message is one line that says what was expected, what came, and what to change. Command-line entry points print
    it without a traceback and exit with a non-zero status.
    """


class Returning(Iterable[T], Generic[T, R]):
    """The items of a generator, and afterwards the `value` that it has returned."""

    value: R

    def __init__(self, generator: Generator[T, None, R]) -> None:
        self._generator = generator

    def __iter__(self) -> Iterator[T]:
        """Go through the items."""
        self.value = yield from self._generator


def install(extra: str) -> str:
    """Say how to install the packages of an extra."""
    return f'in your clone of lit_seq2seq, run pip install -e ".[{extra}]"'


@dataclass(frozen=True)
class SpecialIds:
    """Integer ids of the four special symbols of a vocabulary."""

    pad: int = 0
    unk: int = 1
    bos: int = 2
    eos: int = 3


@dataclass(frozen=True)
class Value:
    """Base of the immutable records of tensors, or of arrays of NumPy; each has the batch as its first dimension.

    Subclasses are frozen dataclasses whose fields are tensors, other `Value`s, tuples or mappings of these, or `None`;
    anything else is carried along untouched.

    Example:
        >>> import torch
        >>> @dataclass(frozen=True)
        ... class Pair(Value):
        ...     first: Tensor
        ...     second: Tensor
        >>> Pair(torch.tensor([1, 2]), torch.tensor([3, 4])).select(torch.tensor([1]))
        Pair(first=tensor([2]), second=tensor([4]))
    """

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return a copy with `function` applied to every tensor, however deeply it is nested."""
        changes = {field.name: _map(getattr(self, field.name), function) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **changes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return a copy on `device`, of tensors, whichever arrays it was made of."""
        import torch

        return self.map(lambda array: torch.as_tensor(array).to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return a copy in page-locked memory, for fast transfer to a GPU."""
        return self.map(lambda tensor: tensor.pin_memory())

    def select(self, index: Tensor) -> Self:
        """Return the rows named by `index`, `(M,)` integers, in that order."""
        take = arrays.of(index).take
        return self.map(lambda tensor: take(tensor, index))

    def repeat(self, times: int) -> Self:
        """Return a copy with each row repeated `times` times in place: `a a b b ...`."""
        return self.map(lambda tensor: arrays.of(tensor).repeat(tensor, times))

    @classmethod
    def joined(cls, values: Sequence[Self]) -> Self:
        """Return the rows of all `values`, whose tensors differ in nothing but the number of rows.

        Example:
            >>> import torch
            >>> Padded.joined([Padded(torch.tensor([[4, 5]]), torch.tensor([2]))] * 2).lengths
            tensor([2, 2])
        """
        parts: list[list[Tensor]] = []
        for value in values:
            parts.append([])
            value.map(lambda tensor, found=parts[-1]: found.append(tensor) or tensor)  # type: ignore[misc]
        rows = (arrays.of(first).concat([first, *others]) for first, *others in zip(*parts, strict=True))
        return values[0].map(lambda _: next(rows))


class Part:
    """What a description can name by `class_path`, made ready to use: a frozen dataclass of plain values.

    Attributes:
        outside: names of arguments that are paths, or lists of paths, and what lies there, a `file` or a `model`: a
            model folder carries them.
    """

    outside: ClassVar[Mapping[str, str]] = {}


def _map(value: object, function: Callable[[Tensor], Tensor]) -> object:
    if isinstance(value, Value):
        return value.map(function)
    if arrays.is_array(value):
        return function(value)  # type: ignore[arg-type]
    if isinstance(value, tuple):
        return tuple(_map(item, function) for item in value)
    if isinstance(value, Mapping):
        return {name: _map(item, function) for name, item in value.items()}
    return value


@dataclass(frozen=True)
class Padded(Value):
    """A batch of sequences of different lengths, padded at the end.

    Attributes:
        values: `(B, S)` integer ids, `(B, S, F)` floating-point features, or `(B, S, ...)` for anything else.
        lengths: `(B,)` integers, each from 0 to S.

    Example:
        >>> import torch
        >>> Padded(torch.tensor([[4, 5], [6, 0]]), torch.tensor([2, 1])).mask
        tensor([[ True,  True],
                [ True, False]])
    """

    values: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """`(B, S)` booleans, true at real positions."""
        positions = arrays.of(self.lengths).arange(self.values.shape[1])
        mask: Tensor = positions[None, :] < self.lengths[:, None]  # (B, S)
        return mask

    @property
    def total(self) -> Tensor:
        """Number of real positions in the batch, a scalar tensor."""
        return self.lengths.sum()

    @property
    def copies(self) -> Copies | None:
        """What a copying model may copy; `None` where nothing can be copied."""
        return None

    def extra(self, row: int) -> tuple[str, ...]:
        """Symbols of one sequence that the target's vocabulary lacks; their ids follow those of the vocabulary."""
        return ()

    def regions(self, row: int) -> dict[str, int]:
        """Real positions of each source, where the sequence is made of several."""
        return {}

    def named(self, role: str = "") -> dict[str, Tensor]:
        """Name what an exported encoder reads, `role` being the end of the names where there are several sources."""
        return {f"source{role}": self.values, f"lengths{role}": self.lengths}


@dataclass(frozen=True)
class Copies(Value):
    """What each source symbol is called in the target's vocabulary.

    Attributes:
        ids: `(B, S)` ids below V, the size of the vocabulary, or, for symbols that it lacks, from V on, numbered per
            source in the order of first occurrence.
        repeated: `(B, S)` true where the same symbol has stood before in the source.
        extra: greatest number of such symbols in a source; ids are below V + `extra`.
    """

    ids: Tensor
    repeated: Tensor
    extra: int

    @classmethod
    def of(cls, ids: Tensor, extra: int) -> Self:
        """Find what is repeated.

        Example:
            >>> import torch
            >>> Copies.of(torch.tensor([[7, 5, 7]]), extra=0).repeated
            tensor([[False, False,  True]])
        """
        xp = arrays.of(ids)
        ordered, places = xp.sort_down(ids)  # (B, S)
        same = xp.full(ids.shape, False)
        same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        return cls(ids, xp.put(xp.full(ids.shape, False), places, same), extra)


@dataclass(frozen=True)
class CopySource(Padded):
    """A source whose symbols can be copied into the target (See et al. 2017, section 2.2).

    Attributes:
        ids: `(B, S)` the ids of `Copies`.
        symbols: per source the symbols V, V + 1, ... as the target's tokenizer writes them.
    """

    ids: Tensor
    symbols: tuple[tuple[str, ...], ...]

    def named(self, role: str = "") -> dict[str, Tensor]:
        """Name what an exported model reads."""
        return {**super().named(role), "copy_ids": self.ids}

    @property
    def copies(self) -> Copies:
        """What a copying model may copy."""
        return Copies.of(self.ids, max(map(len, self.symbols), default=0))

    def extra(self, row: int) -> tuple[str, ...]:
        """Symbols of one source that the target's vocabulary lacks."""
        return self.symbols[row]

    def select(self, index: Tensor) -> Self:
        """Return the sources named by `index`, `(M,)` integers, in that order."""
        return dataclasses.replace(super().select(index), symbols=tuple(self.symbols[row] for row in index.tolist()))

    def repeat(self, times: int) -> Self:
        """Return a copy with each source repeated `times` times in place."""
        repeated = tuple(symbols for symbols in self.symbols for _ in range(times))
        return dataclasses.replace(super().repeat(times), symbols=repeated)


@dataclass(frozen=True)
class AlignedTarget(Padded):
    """A target of whose symbols it is known where they come from.

    Attributes:
        alignment: `(B, T, S)` how much of each target symbol comes from each source symbol, from 0 to 1, or whether;
            0 everywhere for what nothing is known of.
    """

    alignment: Tensor


@dataclass(frozen=True)
class Sources(Value):
    """Several sources side by side, such as a text and an image.

    Attributes:
        parts: each by its name.
    """

    parts: Mapping[str, Padded]

    def named(self) -> dict[str, Tensor]:
        """Name what an exported encoder reads."""
        return {key: array for name, part in self.parts.items() for key, array in part.named(f".{name}").items()}

    @property
    def lengths(self) -> Tensor:
        """`(B,)` real positions of all sources together."""
        first, *others = (part.lengths for part in self.parts.values())
        return sum(others, first)

    @property
    def copies(self) -> None:
        """Nothing can be copied."""
        return None

    def extra(self, row: int) -> tuple[str, ...]:
        """Nothing can be copied."""
        return ()


@dataclass(frozen=True)
class Shared(Value):
    """Sources of which several examples of a batch have the same one: an image with several captions.

    Attributes:
        distinct: each source once.
        index: `(B,)` which of them each example has.

    Example:
        >>> import torch
        >>> images = Padded(torch.zeros(2, 8, 8, 3), torch.tensor([8, 8]))
        >>> shared = Shared(images, torch.tensor([0, 0, 1]))
        >>> shared.lengths
        tensor([8, 8, 8])
        >>> len(shared.select(torch.tensor([0, 1])).distinct.lengths)
        1
    """

    distinct: Padded | Sources
    index: Tensor

    @property
    def lengths(self) -> Tensor:
        """`(B,)` real positions."""
        return self.distinct.lengths[self.index]

    @property
    def copies(self) -> Copies | None:
        """What a copying model may copy."""
        copies = self.distinct.copies
        return None if copies is None else copies.select(self.index)

    def extra(self, row: int) -> tuple[str, ...]:
        """Symbols of one source that the target's vocabulary lacks."""
        return self.distinct.extra(int(self.index[row]))

    def select(self, index: Tensor) -> Self:
        """Return the examples named by `index`, `(M,)` integers, in that order, with the sources that they have."""
        kept, places = self.index.index_select(0, index).unique(return_inverse=True)  # type: ignore[no-untyped-call]
        return dataclasses.replace(self, distinct=self.distinct.select(kept), index=places)

    def repeat(self, times: int) -> Self:
        """Return a copy with each example repeated `times` times in place; each time it has a source of its own."""
        places = self.index[:, None] * times + arrays.of(self.index).arange(times)  # (B, times)
        return dataclasses.replace(self, distinct=self.distinct.repeat(times), index=places.flatten())


Source: TypeAlias = Padded | Sources | Shared
"""What an encoder reads."""


@dataclass(frozen=True)
class Batch(Value):
    """What the data loader gives the model.

    Attributes:
        source: the inputs.
        target: `(B, T)` ids *ending with EOS* (no BOS), or `None` when predicting; ids beyond the vocabulary are those
            of `source.copies`.
        rows: `(B,)` index of each example in its split, so that predictions can be put back in order.
        references: per example the tuple of reference texts, for metrics; empty when predicting.
        texts: per example the source for display, a text or a few words about it. When training, this and `references`
            are empty unless the objective asks for them.
        ends: per example when each target symbol but EOS ends, NaN where that is unknown; empty unless the data tell.
        piece: number of the batch in running text, from 0: each target goes on where that of the batch before ended,
            and `references` are the texts that end in it; `None` where each target is by itself.
    """

    source: Source
    target: Padded | None
    rows: Tensor
    references: tuple[tuple[str, ...], ...] = ()
    texts: tuple[str, ...] = ()
    ends: tuple[tuple[float, ...], ...] = ()
    piece: int | None = None

    def __len__(self) -> int:
        return self.rows.shape[0]


@dataclass(frozen=True)
class CellState(Value):
    """State of a stack of recurrent layers.

    Attributes:
        h: `(N, L, H)` outputs of the layers.
        others: `(N, L, H_i)` each, what else their cells carry, such as an LSTM's cell vectors.
    """

    h: Tensor
    others: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, values: Iterable[Tensor]) -> Self:
        """Make a state of its vectors, the outputs first."""
        h, *others = values
        return cls(h, tuple(others))

    @property
    def values(self) -> tuple[Tensor, ...]:
        """All vectors, the outputs first."""
        return (self.h, *self.others)

    def layers(self, start: int | None, stop: int | None = None) -> Self:
        """Return the state of some of the layers, from the lowest."""
        return type(self)(self.h[:, start:stop], tuple(part[:, start:stop] for part in self.others))


@dataclass(frozen=True)
class Encoded(Value):
    """What an encoder makes of a source batch.

    Attributes:
        memory: `(B, S, M)` one vector per source position.
        final: last state of every encoder layer, `(B, L, F)`, directions concatenated.
        copies: what can be copied from the source; `None` where nothing can.
        candidates: `(B, C)` the target ids among which a search with a shortlist chooses: padding, unknown, BOS and EOS
            first; `None` without one.
        prefix: `(B, P)` target ids with which each output begins, padded at the end; `None` where it is free to.
    """

    memory: Padded
    final: CellState
    copies: Copies | None = None
    candidates: Padded | None = None
    prefix: Tensor | None = None


@dataclass(frozen=True)
class Hypothesis:
    """One decoded output.

    Attributes:
        tokens: `(T,)` ids without BOS and without EOS; those of copied symbols may lie beyond the vocabulary.
        score: the number by which hypotheses are ranked: log-probability after the length and coverage penalties.
        log_prob: plain sum of the log-probabilities of the tokens and of EOS, where it was produced.
        token_scores: `(T,)` or `(T + 1,)` log-probability of each token, then of EOS where it was produced.
        attention: `(T or T + 1, S)` attention weights beside `token_scores`; `None` for models without attention.
        text: what the tokens say, for people; a model fills it in, search alone leaves it empty.
        regions: of several sources how many of the attended positions each has, in their order.
        met: whether it meets all constraints of the search.
        delays: `(T,)` or `(T + 1,)` integers, how much of the source had been read before each token, and before EOS
            where it was produced; `None` without a policy.
        written: `(T,)` integers, how much of the source the model needs for the position at which its best alignment
            writes each token; `None` unless asked for, and where there is no alignment.
        emission: of a transducer how it spends its frames on the output; see `lit_seq2seq.search.alignments.emission`.
        passes: log-probabilities that other parts of the model give the whole output, by their names.
    """

    tokens: Tensor
    score: float
    log_prob: float
    token_scores: Tensor
    attention: Tensor | None = None
    text: str = ""
    regions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    met: bool = True
    delays: Tensor | None = None
    written: Tensor | None = None
    emission: Mapping[str, float] = dataclasses.field(default_factory=dict)
    passes: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Generated:
    """One output text, with what is known of it.

    Attributes:
        text: the text.
        score: what hypotheses are ranked by; 0 for an empty input.
        tokens: display form of each output symbol, EOS last where it was produced.
        token_scores: log-probability of each.
        source_tokens: display form of each source symbol; empty for a source that has none.
        attention: `(T, S)` weights of each output symbol over the encoder's positions; `None` unless asked for.
        regions: of several sources how many of these positions each has, in their order.
        alignment: for each output symbol but EOS the source position that it attends to most, as pairs of source and
            output position, counted from 0; no position is one of a special symbol, such as EOS.
        met: whether it meets all constraints of the search.
        delays: how many positions of the source had been read before each output symbol, beside `tokens`; empty without
            a policy.
        source_length: number of positions of the source; 0 for an empty input.
        times: when each output symbol but EOS is written, by the best alignment: milliseconds of sound, else source
            positions; empty unless asked for.
        emission: see `Hypothesis`.
    """

    text: str
    score: float = 0.0
    tokens: tuple[str, ...] = ()
    token_scores: tuple[float, ...] = ()
    source_tokens: tuple[str, ...] = ()
    attention: Tensor | None = None
    regions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alignment: tuple[tuple[int, int], ...] = ()
    met: bool = True
    delays: tuple[int, ...] = ()
    source_length: int = 0
    times: tuple[float, ...] = ()
    emission: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def told(self, details: Iterable[str] = ()) -> dict[str, Any]:
        """Return the text with the details that are asked for, as plain values; see `GenerationConfig.details`.

        Example:
            >>> Generated("zwei", -0.5, ("zwei", "<eos>"), (-0.25, -0.25), alignment=((0, 0),)).told(["alignment"])
            {'text': 'zwei', 'alignment': '0-0'}
        """
        found: dict[str, Any] = {"text": self.text}
        for detail in details:
            found |= getattr(self, f"_{detail}")()
        return found

    def _score(self) -> dict[str, Any]:
        return {"score": self.score}

    def _tokens(self) -> dict[str, Any]:
        return {"tokens": list(self.tokens), "token_scores": list(self.token_scores)}

    def _alignment(self) -> dict[str, Any]:
        return {"alignment": " ".join(f"{source}-{output}" for source, output in self.alignment)}

    def _attention(self) -> dict[str, Any]:
        rows = [] if self.attention is None else self.attention.tolist()
        regions = {"regions": dict(self.regions)} if self.regions else {}
        weights = [[round(weight, 6) for weight in row] for row in rows]
        return {"source_tokens": list(self.source_tokens), "attention": weights, **regions}

    def _delays(self) -> dict[str, Any]:
        return {"delays": list(self.delays), "source_length": self.source_length}

    def _times(self) -> dict[str, Any]:
        return {"times": list(self.times)}

    def _emission(self) -> dict[str, Any]:
        return {"emission": dict(self.emission)}

    def _met(self) -> dict[str, Any]:
        return {"met": self.met}


class PredictedText(TypedDict):
    """One hypothesis of a prediction, as text."""

    text: str
    score: float


class Prediction(TypedDict):
    """What `predict_step` returns per example.

    Attributes:
        row: its place in the dataset.
        source: its source as it is shown.
        references: what the dataset has to compare with, if anything.
        hypotheses: the outputs, best first.
    """

    row: int
    source: str
    references: list[str]
    hypotheses: list[PredictedText]


class SearchState(Protocol):
    """What search asks of a decoding state: to be reordered, nothing more."""

    def select(self, index: Tensor) -> Self:
        """Return the state whose hypotheses are `index`.

        Args:
            index: `(B', K')` integers, positions in the present flat list of B * K hypotheses (K per sentence,
                sentences in order). Each row holds hypotheses of one and the same sentence; sentences keep their
                order, and some may be missing (they are finished).
        """


S = TypeVar("S", bound=SearchState)


@dataclass(frozen=True)
class StepOutput(Generic[S]):
    """Result of one decoding step for N = B * K hypotheses.

    Attributes:
        log_probs: `(N, V)` log-probabilities of the next token.
        state: the state after the step.
        attention: `(N, S)` weights over source positions, or `None`.
        fresh: whether nobody else holds `log_probs`, so that search may overwrite them.
    """

    log_probs: Tensor
    state: S
    attention: Tensor | None = None
    fresh: bool = False


@dataclass(frozen=True)
class Joined(Value):
    """States of several models, or of a model and what scores beside it. Implements `SearchState`."""

    members: tuple[Any, ...]

    def select(self, index: Tensor) -> Self:
        """Reorder the hypotheses of all by `index (B', K')`; see `SearchState`."""
        return type(self)(tuple(one.select(index) for one in self.members))

    def narrowed(self, reach: Tensor) -> Self:
        """Show each of the next T steps only the first `reach (T,)` positions of its source."""
        return type(self)(tuple(one.narrowed(reach) for one in self.members))


def averaged(outputs: Sequence[StepOutput[Any]]) -> StepOutput[Joined]:
    """Average what models say of the same tokens: `p(y_t) = 1/M sum_m p_m(y_t)`, and attention where it is alike.

    The committee of Hansen and Salamon (1990) as Sutskever et al. (2014, section 3.6) decode with it.
    """
    found = [one.attention for one in outputs if one.attention is not None]  # each (N, S)
    alike = len({one.shape for one in found}) == 1
    return StepOutput(
        arrays.log_mean([one.log_probs for one in outputs]),
        Joined(tuple(one.state for one in outputs)),
        sum(found[1:], found[0]) / len(found) if alike else None,
        fresh=True,
    )


class StepFunction(Protocol[S]):
    """`step(tokens (N,), state) -> StepOutput`: all that search knows of a model."""

    def __call__(self, tokens: Tensor, state: S) -> StepOutput[S]:
        """Advance every hypothesis by the token `tokens (N,)` it just received."""
