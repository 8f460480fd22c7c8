"""Raw inputs of one kind to arrays: what `lit_seq2seq.features` does, for use without torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_seq2seq.files.untrusted import check_special, tokenizing
from lit_seq2seq.runtime.audio import MAX_SECONDS, check_bands, log_mel, read_audio
from lit_seq2seq.runtime.placeholders import Delexicalized
from lit_seq2seq.runtime.records import linearize, read_record, several
from lit_seq2seq.runtime.text import Vocabulary, whole
from lit_seq2seq.runtime.vectors import check_frames, normalized, stacked, with_deltas
from lit_seq2seq.types import UserError

Array = npt.NDArray[Any]
Named = dict[str, Array]


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
        UserError: a value cannot be read.
    """
    try:
        return encode(raw)
    except UserError:
        for name, value in zip(names, raw, strict=True):
            try:
                encode([value])
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
        raise


class Reader(ABC):
    """Turns raw inputs of one kind into padded arrays."""

    pad: int = 0
    """What stands at padding."""

    def is_missing(self, raw: Any) -> bool:
        """Tell whether there is no input, so that the output is empty."""
        return is_nothing(raw)

    @abstractmethod
    def encode(self, raw: Sequence[Any]) -> list[Array]:
        """Turn raw inputs into arrays.

        Raises:
            UserError: one cannot be read.
        """

    @abstractmethod
    def nothing(self) -> Array:
        """Return the array that stands for one source of several that is missing."""

    def positions(self, array: Array) -> int:
        """Count the positions of an array."""
        return len(array)

    def truncate(self, array: Array, length: int) -> Array:
        """Shorten an array to at most `length` positions."""
        return array[:length]

    def collate(self, arrays: Sequence[Array]) -> Named:
        """Pad arrays at the end: `source (B, S, ...)` and `lengths (B,)`, as the encoder names its inputs."""
        lengths = np.array([len(array) for array in arrays], np.int64)
        values = np.full((len(arrays), lengths.max(), *arrays[0].shape[1:]), self.pad, arrays[0].dtype)
        for row, array in zip(values, arrays, strict=True):
            row[: len(array)] = array
        return {"source": values, "lengths": lengths}

    def restore(self, text: str, raw: Any) -> str:
        """Put back into an output what the model did not see of its input."""
        return text


class Text(Reader):
    """Texts as symbol ids.

    Args:
        vocabulary: the symbols.
        prefix: text put before every input.
    """

    def __init__(self, vocabulary: Vocabulary, prefix: str = "") -> None:
        self.vocabulary = vocabulary
        self.prefix = prefix
        self.pad = vocabulary.specials.pad

    def is_missing(self, raw: Any) -> bool:
        """Tell whether a text is absent or blank; anything else is a mistake, which `encode` tells."""
        return raw is None or (isinstance(raw, str) and (not raw or raw.isspace()))

    def encode(self, raw: Sequence[Any]) -> list[Array]:
        """Turn texts into ids `(S,)` that end with EOS."""
        return [np.array(ids, np.int64) for ids in self.ids([self.prefix + whole(text) for text in raw])]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Turn texts into ids that end with EOS."""
        return self.vocabulary.encode(texts)

    def nothing(self) -> Array:
        """Return the ids of an empty text."""
        return np.array(self.ids([""])[0], np.int64)

    def truncate(self, array: Array, length: int) -> Array:
        """Shorten ids that end with EOS to ids that end with EOS."""
        return array if len(array) <= length else np.concatenate([array[: length - 1], array[-1:]])


class Prompts(Text):
    """What outputs begin with, as ids of the target and then padding; there may be nothing."""

    def is_missing(self, raw: Any) -> bool:
        """No prompt is one, too."""
        return False

    def encode(self, raw: Sequence[Any]) -> list[Array]:
        """Turn prompts into ids, then padding."""
        return [np.array([*ids[:-1], self.pad], np.int64) for ids in self.ids([whole(text or "") for text in raw])]

    def nothing(self) -> Array:
        """Return padding alone."""
        return np.array([self.pad], np.int64)


class PretrainedText(Text):
    """Texts as a pretrained model's tokenizer splits them, with the special symbols that the model expects."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        size = 1 + max(vocabulary.backend.get_vocab().values(), default=-1)
        check_special([vocabulary.specials.pad, *self.nothing().tolist()], size)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Turn texts into ids between special symbols."""
        with tokenizing():
            found = self.vocabulary.backend.encode_batch_fast(list(map(whole, texts)), add_special_tokens=True)
        return [list(encoding.ids) for encoding in found]


class RecordText(Text):
    """Records, written as text.

    Args:
        config: settings of `lit_seq2seq.features.Records`.
    """

    def __init__(self, vocabulary: Vocabulary, config: dict[str, Any]) -> None:
        super().__init__(vocabulary)
        self.config = config

    def is_missing(self, raw: Any) -> bool:
        """Tell whether a record is absent or has no slot."""
        if isinstance(raw, Mapping):
            return not any(map(several, raw.values()))
        return is_nothing(raw)

    def _hidden(self, raw: Any) -> Delexicalized:
        return Delexicalized(read_record(raw), self.config.get("delexicalize", ()))

    def encode(self, raw: Sequence[Any]) -> list[Array]:
        """Turn records into ids."""
        values, sort = self.config["values"], self.config["sort"]
        return super().encode([linearize(self._hidden(record).pairs, values, sort) for record in raw])

    def restore(self, text: str, raw: Any) -> str:
        """Put the values of the record in place of placeholders."""
        return self._hidden(raw).restore(text)


class Vectors(Reader):
    """Recordings or ready frames as sequences of vectors.

    Args:
        config: settings of `lit_seq2seq.features.LogMel`, `Waveform` or `Frames`.
        statistics: mean and deviation over the training data, where the settings ask for them.
    """

    def __init__(self, config: dict[str, Any], statistics: Any = None) -> None:
        if "n_mels" in config:
            check_bands(**config)
        self.config = config
        self.statistics = statistics

    def encode(self, raw: Sequence[Any]) -> list[Array]:
        """Compute vectors `(T, F)`."""
        return [self._encode(value) for value in raw]

    def _encode(self, raw: Any) -> Array:
        config = self.config
        if "n_mels" in config:
            names = ("sampling_rate", "n_mels", "window", "hop", "fmin", "fmax", "log_floor")
            frames = log_mel(self._samples(raw), **{name: config[name] for name in names})
        elif "sampling_rate" in config:
            frames = self._samples(raw)[:, None]
        else:
            frames = check_frames(raw, config["channels"])
        frames = with_deltas(frames, config.get("deltas", 0))
        if config["normalize"] != "none":
            frames = normalized(frames, self.statistics)
        return stacked(frames, self._stack)

    def _samples(self, raw: Any) -> Array:
        return read_audio(raw, self.config["sampling_rate"], self.config.get("max_seconds", MAX_SECONDS))

    @property
    def _stack(self) -> int:
        return int(self.config.get("stack", 1))

    def nothing(self) -> Array:
        """Return a single position of zeros."""
        config = self.config
        size = int(config.get("n_mels") or config.get("channels") or 1)
        return np.zeros((1, size * (1 + config.get("deltas", 0)) * self._stack), np.float32)


class Pixels(Reader):
    """Images as pixels of one size.

    Args:
        config: settings of `lit_seq2seq.features.Image`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def encode(self, raw: Sequence[Any]) -> list[Array]:
        """Decode images: `(H, W, 3)`; needs Pillow."""
        from lit_seq2seq.runtime.images import decode_image, fitted

        edge, config = self.config["size"], self.config
        enough = math.ceil(2 * edge / math.sqrt(config["smallest_crop"]))
        images = [decode_image(value, config["max_pixels"], enough) for value in raw]
        return [np.asarray(fitted(image, edge, config["fit"])) for image in images]

    def nothing(self) -> Array:
        """Return a grey image."""
        from lit_seq2seq.runtime.images import GREY

        return np.full((self.config["size"], self.config["size"], 3), GREY, np.uint8)

    def positions(self, array: Array) -> int:
        """Count a position for every 16 x 16 pixels."""
        return math.ceil(int(self.config["size"]) / 16) ** 2

    def truncate(self, array: Array, length: int) -> Array:
        """Return the image as it is."""
        return array

    def collate(self, arrays: Sequence[Array]) -> Named:
        """Normalise."""
        from lit_seq2seq.runtime.images import normalized_pixels

        values = normalized_pixels(np.stack(arrays), self.config["mean"], self.config["std"])
        return {"source": values, "lengths": np.full(len(arrays), self.config["size"], np.int64)}


def own_reader(found: type) -> type[Reader]:
    """Give a class of a user's own what it lacks of a `Reader`; where it raises `ValueError`, an input cannot be read.

    Example:
        >>> class Codes:
        ...     def encode(self, raw):
        ...         return [np.array([int(code) for code in text.split()]) for text in raw]
        ...     def nothing(self):
        ...         return np.zeros(1, np.int64)
        >>> reader = own_reader(Codes)()
        >>> reader.collate(reader.encode(["4 5", "6"]))["source"].tolist()
        [[4, 5], [6, 0]]
    """

    def encode(self: Reader, raw: Sequence[Any]) -> list[Array]:
        try:
            made: list[Array] = found.encode(self, raw)  # type: ignore[attr-defined]
        except ValueError as error:
            raise UserError(str(error)) from error
        return made

    return type(found.__name__, (found, Reader), {"encode": encode, "__module__": found.__module__})
