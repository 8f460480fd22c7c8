"""What turns the raw side of a row into arrays, and arrays into padded batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeGuard

import numpy as np
import numpy.typing as npt

from lit_seq2seq.features.streams import FeatureStream, GrowingStream, text_so_far
from lit_seq2seq.features.text import whole
from lit_seq2seq.files.untrusted import check_settings
from lit_seq2seq.settings import spec
from lit_seq2seq.types import Padded, Sources, UserError

if TYPE_CHECKING:
    from lit_seq2seq.features.tokenizer import Tokenizer

Array = npt.NDArray[np.generic]
Medium = Literal["text", "record", "frames", "audio", "image"]


class Feature(ABC):
    """One kind of model input: text, speech, images.

    A feature knows which columns and raw inputs it reads, may learn from training data (`train`), turns raw values into
    arrays whose first dimension is padded (`encode`), and pads arrays into a batch (`collate`). A model folder keeps it
    as the path of its class and what `to_dict` says.

    What `collate` returns is a contract with the encoder, in which `lengths` always counts dimension 1 of `values`:

    - symbols: `values (B, S)` integer ids;
    - vectors: `values (B, S, F)` floating-point features, zero at padding, `F = size`;
    - images: `values (B, H, W, C)` pixels, `C = size`; `lengths` counts pixel rows, all H unless heights differ;
    - several sources: `Sources`, one of the above for each name, whose sizes `size` gives.

    They are arrays of NumPy, of which `Value.to` makes tensors; tensors pass as they are. Nothing here needs torch but
    what changes training examples at random, so that exported models read their inputs by the same files.

    An encoder is free to return fewer positions than it reads; the lengths of its memory say how many.

    A row with several targets holds its source once: it is stored once, and encoded once for all examples in a batch
    that share it. Random changes draw from torch's random state, which differs between data-loading processes.

    A feature of your own reads texts unless it says otherwise, and needs `config`, `size`, `encode` and `nothing`.

    Attributes:
        config: arguments of the constructor, as plain values.
        medium: how an input comes over HTTP and on a page: a `text`, a `record` (any JSON), `frames` (lists of
            numbers), or a file with `audio` or an `image`; `None` where there is no way.
        column_kind: what a dataset's column must hold, for the error message.
        input_kind: what one raw input must be, with its article, for the error message.
        random_settings: names in `config` that only act on training batches, not on what is learned or stored.
        rows_at_once: number of rows that are in memory together when a data set is read; fewer where one is large.
        input_limit: greatest number of positions of an input when predicting, unless the user says otherwise.
        one_size: whether all arrays have one size. Then batches are not made of examples of similar length: what is
            said in few words looks different, and batch normalisation must see all kinds together.
        begins_output: whether an input is what the output begins with, as in a model without a source; see `Prompt`.
    """

    config: dict[str, Any]
    medium: ClassVar[Medium | None] = "text"
    column_kind: ClassVar[str] = "text"
    input_kind: ClassVar[str] = "a text"
    random_settings: ClassVar[tuple[str, ...]] = ()
    rows_at_once: ClassVar[int] = 50
    input_limit: ClassVar[int | None] = None
    one_size: ClassVar[bool] = False
    begins_output: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if (reader := vars(cls).get("reader_class")) is not None:
            _read_by(cls, reader)

    # ---------------------------------------------------------------------------------------------- what it reads

    def accepts_column(self, column: object) -> bool:
        """Tell whether values of a column of this type of `datasets` can be read; files come undecoded."""
        return is_column(column, "Value") and column.dtype in ("string", "large_string")

    def accepts(self, raw: object) -> bool:
        """Tell whether `raw` is one input, rather than a collection of inputs or something else."""
        return isinstance(raw, str)

    def is_missing(self, raw: object) -> bool:
        """Tell whether a row has no input."""
        return is_nothing(raw)

    def show(self, raw: Any) -> str:
        """Describe an input in a few words, for tables of samples."""
        return raw if isinstance(raw, str) else "" if raw is None else type(raw).__name__

    def labels(self, source: Padded | Sources, row: int) -> list[str]:
        """Name each position of one source of a batch that `collate` made; nothing where positions have no names."""
        return []

    def pieces(self, raw: Any) -> list[str]:
        """Return the text of the word that each position of one input belongs to, special symbols left out.

        Raises:
            UserError: an input is no text.
        """
        raise UserError(f"replace_unknown=True: {type(self).__name__} reads no words to put in: leave it out")

    def word_numbers(self, raw: Any) -> list[int]:
        """Return for each symbol of one input, EOS left out, the number of its word, counted from 0.

        Raises:
            UserError: an input is no text.
        """
        raise UserError(f"{type(self).__name__} does not tell which words it reads: leave columns.alignment out")

    @property
    def marks(self) -> tuple[str, ...]:
        """Names of the special symbols that stand in sources and say nothing, such as EOS."""
        return ()

    def picture(self, raw: Any) -> Array | None:
        """Return an input as the model sees it, `(H, W, 3)` pixels from 0 to 255; `None` for what is no image."""
        return None

    def pictures(self, raw: Any) -> dict[str, Array]:
        """Return each image of an input by the name of its source; the only source has none."""
        found = self.picture(raw)
        return {} if found is None else {"": found}

    def typed(self, raw: Any) -> str | None:
        """Write an input on one line, as the command line reads it; `None` where it cannot be."""
        return raw if isinstance(raw, str) else None

    def beside(self, target: Tokenizer) -> Feature:
        """Return the feature to be used with this target; itself unless it depends on it."""
        return self

    @property
    def parts(self) -> tuple[Feature, ...]:
        """The features of which it is made, itself the first."""
        return (self,)

    # ---------------------------------------------------------------------------------------------- hidden in targets

    @property
    def hides(self) -> bool:
        """Whether `hide` changes targets."""
        return False

    def hide(self, text: str, raw: Any) -> str:
        """Put placeholders into a target for what the model shall not see of its source `raw`."""
        return text

    def restore(self, text: str, raw: Any) -> str:
        """Undo `hide` in an output, for the source `raw` or what `show` says of it."""
        return text

    # ---------------------------------------------------------------------------------------------- learning

    @property
    @abstractmethod
    def size(self) -> int | Mapping[str, int]:
        """Number of symbols of the vocabulary, or dimension of the feature vectors; of several sources each by name."""

    @property
    def is_trained(self) -> bool:
        """Whether there is nothing left to learn."""
        return True

    def train(self, raw: Iterable[Any], total: int | None = None) -> None:  # noqa: B027 - most have nothing to learn
        """Learn from raw training values.

        Args:
            raw: the values, or lists of them.
            total: how many there are, for the progress bar.
        """

    @property
    def by_speaker(self) -> bool:
        """Whether values of each speaker are to be encoded by what `adapted` returns for them."""
        return False

    def adapted(self, raw: Iterable[Any]) -> Self:
        """Return a feature that fits values of one speaker, given some of them; itself unless `by_speaker`."""
        return self

    @property
    def symbols(self) -> list[str]:
        """Names of the symbols by id; none where something else is read."""
        return []

    def extended(self, raw: Iterable[Any], limit: int) -> Self:
        """Return a feature that knows more symbols, whose ids follow; itself where there are none to learn.

        Args:
            raw: new training values, or lists of them.
            limit: greatest number of symbols to add.
        """
        return self

    @property
    def unknown_id(self) -> int | None:
        """Id that stands for any symbol that the vocabulary lacks; `None` where there is none."""
        return None

    # ---------------------------------------------------------------------------------------------- encoding

    def time(self, count: int, length: int) -> float | None:
        """Tell how many milliseconds of a source its first `count` of `length` positions need, if it has a duration."""
        return None

    @property
    def stored_as(self) -> str | None:
        """Element type in which encoded arrays are kept on disk: an integer for ids `(T,)`, a float for `(T, F)`.

        `None` keeps lengths only and encodes anew when a batch is made, for what is large and quickly decoded.
        """
        return None

    @property
    def augments(self) -> bool:
        """Whether `encode` is random when training, so that stored arrays do not serve for it."""
        return False

    @abstractmethod
    def encode(self, raw: Sequence[Any], training: bool = False) -> list[Array]:
        """Turn raw values into arrays, each `(T, ...)` with T >= 1.

        Args:
            raw: the values.
            training: whether random augmentation may be applied.

        Raises:
            UserError: a value cannot be read; a `ValueError` is told to the user in the same way.
        """

    def in_pieces(self, sampling_rate: int | None = None) -> FeatureStream:
        """Begin to read one input in pieces, as they come; together they give what `encode` makes of the whole.

        Nothing limits the length of an input: what is held of it does not grow with it.

        Args:
            sampling_rate: of the pieces, in hertz, where they are samples of sound; that of the feature if unset.

        Raises:
            UserError: the feature reads its input as a whole, or has no sampling rate.
        """
        raise UserError(
            f"{type(self).__name__} reads its input as a whole, not in pieces: leave data.source_feature out to read "
            "text, or set it to LogMel, Waveform or Frames"
        )

    def growing(self, sampling_rate: int | None = None) -> FeatureStream:
        """Begin to read one input in pieces, each of which gives what `encode` makes of all that has come so far.

        Of a text that is as far as its last white space; nothing while there is none.

        Raises:
            UserError: inputs have no pieces, or no sampling rate.
        """
        if self.medium != "text":
            raise UserError(f"{type(self).__name__} does not read its input in pieces: give it whole, to generate")
        if sampling_rate is not None:
            raise UserError("a text has no sampling rate: leave sampling_rate out")
        return GrowingStream(whole, text_so_far, self.encode, self.nothing()[:0])

    def augment(self, array: Array) -> Array:
        """Change an encoded array at random, for one training example; the array itself must stay as it is."""
        return array

    def positions(self, array: Array) -> int:
        """Count what an encoded array takes of a batch's token budget."""
        return len(array)

    def measure(self, raw: Sequence[Any]) -> list[int]:
        """Count the positions of raw values; a feature that is not stored overrides this where it can be cheaper."""
        return [self.positions(array) for array in self.encode(raw)]

    @abstractmethod
    def nothing(self) -> Array:
        """Return the array that stands for a missing input that must be kept."""

    def truncate(self, array: Array, length: int) -> Array:
        """Shorten an encoded array to at most `length` positions."""
        return array[:length]

    def collate(self, arrays: Sequence[Array]) -> Padded | Sources:
        """Pad encoded arrays with zeros at the end into one batch: whole numbers in 64 bits, others in 32."""
        one = arrays[0] if arrays else self.nothing()
        shape = (len(arrays), max(map(len, arrays), default=0), *one.shape[1:])
        return padded(arrays, np.zeros(shape, np.int64 if one.dtype.kind in "biu" else np.float32))

    def random(self, count: int, length: int, generator: np.random.Generator) -> Padded | Sources:
        """Draw sources to try a model with: of 1/6 to all of `length`, which the first one has; images have one size.

        Args:
            count: number of sources.
            length: number of positions.
            generator: of the random numbers.
        """
        empty, size = self.collate([self.nothing()]), self.size
        assert isinstance(empty, Padded)
        assert isinstance(size, int)
        _, *shape = empty.values.shape  # (S,) ids, (S, F) vectors or (H, W, C) pixels
        if len(shape) == 3:
            lengths = [shape[0]] * count
        else:
            shape[0] = length
            lengths = [length, *generator.integers(length // 6, length, count - 1, endpoint=True)]
        whole = (count, *shape)
        drawn = generator.integers(size, size=whole) if len(shape) == 1 else generator.normal(size=whole)
        blank = np.zeros(whole, np.int64 if len(shape) == 1 else np.float32)
        return padded([one[:stop] for one, stop in zip(drawn, lengths, strict=True)], blank)

    # ---------------------------------------------------------------------------------------------- saving

    def to_dict(self) -> dict[str, Any]:
        """Describe the feature by plain JSON values: `config`, and beside it what was learned."""
        return {"config": self.config}

    @classmethod
    def from_dict(cls, values: dict[str, Any], trust: tuple[str, ...] = ()) -> Self:
        """Build the feature that `to_dict` described.

        Args:
            values: plain values.
            trust: packages, beyond this one and torch, whose classes the description may name.
        """
        return cls(**values["config"])

    def identity(self) -> dict[str, Any]:
        """Describe what decides the encoded values: two features with the same identity encode alike."""
        values = self.to_dict()
        config = {name: value for name, value in values["config"].items() if name not in self.random_settings}
        return {"class_path": spec.public_name(type(self)), **values, "config": config}


class TextFeature(Feature):
    """Base of texts as ids between or before special symbols, of which the last is kept when a text is cut."""

    rows_at_once: ClassVar[int] = 1000

    @property
    @abstractmethod
    def padding(self) -> int:
        """Id that fills up a batch."""

    def is_missing(self, raw: object) -> bool:
        """Tell whether a text is absent or blank; anything else is a mistake, which `encode` tells."""
        return raw is None or (isinstance(raw, str) and (not raw or raw.isspace()))

    @property
    def stored_as(self) -> str:
        """Ids are kept on disk."""
        return "int32"

    def truncate(self, array: Array, length: int) -> Array:
        """Shorten ids to at most `length`, the last one kept."""
        return array if len(array) <= length else np.concatenate([array[: length - 1], array[-1:]])

    def collate(self, arrays: Sequence[Array]) -> Padded:
        """Pad id arrays into int64 `values (B, T)`."""
        return padded(arrays, np.full((len(arrays), max(map(len, arrays), default=0)), self.padding, np.int64))


def padded(arrays: Sequence[Array], values: Array) -> Padded:
    """Write arrays into the rows of `values`, which are as long as the longest of them."""
    for row, array in zip(values, arrays, strict=True):
        row[: len(array)] = array
    return batch_of(values, [len(array) for array in arrays])


def batch_of(values: Array, lengths: Sequence[int]) -> Padded:
    """Put padded arrays and their lengths together."""
    found: Any = values, np.array(lengths, np.int64)
    return Padded(*found)


def _read_by(cls: Any, reader: Any) -> None:
    """Give a feature the methods of its `reader_class`, in which features of your own once had them."""

    def method(name: str) -> Callable[..., Any]:
        return lambda self, *given, training=False: getattr(reader(**self.to_dict()), name)(*given)

    for name in ("encode", "nothing", "truncate"):
        if hasattr(reader, name) and name not in vars(cls):
            setattr(cls, name, method(name))
    if hasattr(reader, "collate") and "collate" not in vars(cls):
        cls.collate = lambda self, arrays: Padded(*reader(**self.to_dict()).collate(arrays).values())


def is_nothing(raw: object) -> bool:
    """Tell whether there is no input: no value, an empty one or blank text, or a mapping of such.

    Example:
        >>> is_nothing({"bytes": None, "path": ""}), is_nothing(b""), is_nothing("a.wav")
        (True, True, False)
    """
    if isinstance(raw, Mapping):
        return all(is_nothing(value) for key, value in raw.items() if key != "sampling_rate")
    empty = isinstance(raw, str | bytes | list | tuple) and not raw
    return raw is None or empty or (isinstance(raw, str) and raw.isspace())


def encode_named(
    encode: Callable[[Sequence[Any]], list[Array]], raw: Sequence[Any], names: Sequence[str]
) -> list[Array]:
    """Encode values; if one cannot be read, say which by its name.

    Args:
        encode: turns values into arrays.
        raw: the values.
        names: of each value, such as `"row 3"`.

    Raises:
        UserError: a value cannot be read, or not every value has an array.
    """
    try:
        found = list(encode(raw))
        if len(found) != len(raw):
            raise UserError(
                f"encode of the feature made {len(found)} arrays of {len(raw)} inputs: let it make one of each"
            )
        return found
    except (UserError, ValueError):
        for name, value in zip(names, raw, strict=True):
            try:
                encode([value])
            except (UserError, ValueError) as error:
                raise UserError(f"{name}: {error}") from error
        raise


def is_column(column: object, *kinds: str) -> TypeGuard[Any]:
    """Whether a column is of one of these kinds of `datasets`, such as `Value`, which is not imported for it."""
    return any(cls.__module__.startswith("datasets.") and cls.__name__ in kinds for cls in type(column).__mro__)


def describe_feature(feature: Feature) -> dict[str, Any]:
    """Describe a feature by the name of its class and by what `to_dict` says."""
    return {"class_path": spec.public_name(type(feature)), **feature.to_dict()}


def build_feature(values: dict[str, Any], trust: tuple[str, ...] = ()) -> Feature:
    """Build the feature that `describe_feature` described; see `Feature.from_dict`.

    Raises:
        UserError: its class is not trusted, not there or none of features.
    """
    found = spec.import_class(str(values["class_path"]), trust)
    if not issubclass(found, Feature):
        raise UserError(f"expected a feature as the source of the processor, but {values['class_path']} is none")
    check_settings(values.get("config"), f"the {found.__name__} of the processor")
    spec.check_values(found, values.get("config") or {})
    return found.from_dict(values, trust)
