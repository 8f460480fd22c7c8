"""Features that are sequences of vectors; ready frames from a column."""

from __future__ import annotations

import copy
import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np

from lit_seq2seq.features.augmentation import Band, SpecAugment, warping
from lit_seq2seq.features.feature import Array, Feature, Medium, is_column
from lit_seq2seq.features.frames import (
    SMALLEST_DEVIATION,
    FloatArray,
    Running,
    Slopes,
    Stack,
    Stage,
    normalized,
    stacked,
    with_deltas,
)
from lit_seq2seq.features.streams import FeatureStream, GrowingStream, VectorStream
from lit_seq2seq.types import UserError

Normalization = Literal["none", "utterance", "speaker", "global", "running"]
Statistics = tuple[list[float], list[float]]
"""Mean and deviation of each channel."""
_LEARNED = ("global", "running")


class VectorFeature(Feature):
    """Base of sequences of vectors: derivatives, normalisation, stacking and SpecAugment over frames `(T, F)`.

    Args:
        deltas: number of derivatives over time that are put beside the frames: 0, 1 or 2.
        normalize: bring every channel to mean 0 and variance 1: over each `utterance`, over all utterances of its
            `speaker` in the split (an utterance of unknown speaker is normalised by itself, so is every one when
            predicting from raw inputs), over the training data, `global`, or, for input that comes in pieces,
            `running`: over the utterance up to each frame, the training data counting as 100 frames before it. With
            their mean m and deviation s, frame `x_t` becomes `(x_t - m_t) / s_t`, where
            `m_t = (100 m + x_1 + ... + x_t) / (100 + t)` and
            `s_t^2 = (100 (m^2 + s^2) + x_1^2 + ... + x_t^2) / (100 + t) - m_t^2`.
        stack: so many neighbouring frames become one.
        spec_augment: masks for training, as a `SpecAugment` or a mapping of its arguments.
        store: keep computed frames on disk; otherwise they are computed for each batch.
    """

    random_settings: ClassVar[tuple[str, ...]] = ("spec_augment", "store")

    def __init__(
        self,
        deltas: int = 0,
        normalize: Normalization = "utterance",
        stack: int = 1,
        spec_augment: SpecAugment | None = None,
        *,
        store: bool = True,
        **config: Any,
    ) -> None:
        if deltas not in (0, 1, 2):
            raise UserError(f"deltas must be 0, 1 or 2, but is {deltas}")
        if stack < 1:
            raise UserError(f"stack must be at least 1, but is {stack}")
        self.spec_augment = SpecAugment(**spec_augment) if isinstance(spec_augment, Mapping) else spec_augment
        self._warps = self.spec_augment is not None and self.spec_augment.warp > 0
        plain = None if self.spec_augment is None else dataclasses.asdict(self.spec_augment)
        common = {"deltas": deltas, "normalize": normalize, "stack": stack, "spec_augment": plain, "store": store}
        self.config = {**config, **common}
        self._order, self._stack = deltas, stack
        self.statistics: Statistics | None = None
        self._speaker: Statistics | None = None
        if self._warps and self.band is None:
            raise UserError(
                f"warp of spec_augment needs channels of known frequencies, which {type(self).__name__} does not tell: "
                "leave it out, or set cepstra of Frames"
            )

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number of values of a frame, before derivatives and stacking."""

    @property
    def band(self) -> Band | None:
        """Lowest and highest frequency of the channels in hertz, if they are equally spaced in mel, or are cepstra."""
        return None

    @property
    def cepstral(self) -> bool:
        """Whether the channels are cepstra of the mel scale."""
        return False

    @abstractmethod
    def frames(self, raw: Any) -> FloatArray:
        """Turn one raw value into `(T, channels)` float32, T >= 1.

        Raises:
            UserError: it cannot be read.
        """

    @property
    def size(self) -> int:
        """Number of values at a position."""
        return self.channels * (1 + self._order) * self._stack

    @property
    def is_trained(self) -> bool:
        """Whether there are no statistics to be learned."""
        return not self._learns or self.statistics is not None

    @property
    def _learns(self) -> bool:
        """Whether statistics of the training data are needed, for normalisation or for warping what is normalised."""
        return self.config["normalize"] in _LEARNED or (self._warps and self.config["normalize"] != "none")

    @property
    def stored_as(self) -> str | None:
        """Frames are kept on disk as float32 if so configured."""
        return "float32" if self.config["store"] else None

    @property
    def by_speaker(self) -> bool:
        """Whether each speaker has a mean and a deviation of their own."""
        return bool(self.config["normalize"] == "speaker")

    def adapted(self, raw: Iterable[Any]) -> Self:
        """Return a feature that normalises by these values of one speaker."""
        if not self.by_speaker:
            return self
        feature = copy.copy(self)
        feature._speaker = self._statistics(raw)
        return feature

    def train(self, raw: Iterable[Any], total: int | None = None) -> None:
        """Learn mean and deviation of each channel, where `normalize` or `warp` asks for them."""
        if not self._learns:
            return
        from tqdm import tqdm

        values = (value for item in raw for value in (item if isinstance(item, list) else [item]))
        self.statistics = self._statistics(tqdm(values, total=total, desc="statistics", disable=None))

    def _statistics(self, raw: Iterable[Any]) -> Statistics:
        count, summed, squares = 0, np.zeros(1), np.zeros(1)
        for value in raw:
            frames = self._derived(value).astype(np.float64)
            count, summed, squares = count + len(frames), summed + frames.sum(0), squares + (frames**2).sum(0)
        if not count:
            raise UserError("expected data to learn the normalisation from, but there is none: check the source column")
        mean = summed / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, SMALLEST_DEVIATION**2))
        return mean.tolist(), deviation.tolist()

    def encode(self, raw: Sequence[Any], training: bool = False) -> list[Array]:
        """Turn raw values into `(T, F)` float32."""
        return [stacked(self._normalized(self._derived(value)), self._stack) for value in raw]

    def augment(self, array: Array) -> Array:
        """Stretch, warp and mask, if there is a `spec_augment`."""
        if self.spec_augment is None:
            return array
        return self.spec_augment(array.astype(np.float32), self.channels, self._warped)

    def _warped(self, array: FloatArray, factor: float) -> FloatArray:
        """Multiply the frequencies of `(T, F)`, which are in units of deviations, by a factor."""
        assert self.band is not None
        raw = warping(factor, self.channels, self.band, self.cepstral)  # (C, C)
        deviations = self._learned()[1] if self._learns else np.ones(self.channels * (1 + self._order))
        scale = np.reshape(deviations, (-1, self.channels))
        matrices = raw * scale[:, None, :] / scale[:, :, None]  # (1 + order, C, C)
        groups = array.reshape(len(array), self._stack, *scale.shape)
        warped = np.einsum("tsgj,gij->tsgi", groups, matrices.astype(np.float32), optimize=True)
        return np.asarray(warped, dtype=np.float32).reshape(array.shape)

    def nothing(self) -> Array:
        """Return a single position of zeros."""
        return np.zeros((1, self.size), dtype=np.float32)

    def identity(self) -> dict[str, Any]:
        """Leave out statistics that only warping needs; see `Feature.identity`."""
        values = super().identity()
        return values if self.config["normalize"] in _LEARNED else {**values, "statistics": None}

    def to_dict(self) -> dict[str, Any]:
        """Describe settings and statistics."""
        return {"config": self.config, "statistics": self.statistics}

    @classmethod
    def from_dict(cls, values: dict[str, Any], trust: tuple[str, ...] = ()) -> Self:
        """Build the feature that `to_dict` described."""
        feature = cls(**values["config"])
        if values["statistics"] is not None:
            mean, deviation = values["statistics"]
            feature.statistics = (list(mean), list(deviation))
        return feature

    def _derived(self, raw: Any) -> FloatArray:
        return with_deltas(self.frames(raw), self._order)

    def _normalized(self, frames: FloatArray) -> FloatArray:
        if self.config["normalize"] in ("utterance", "speaker"):
            return normalized(frames, self._speaker)
        return self._normalizer()(frames, True)

    def _normalizer(self) -> Stage:
        """Return what normalises frames that come in pieces."""
        kind = self.config["normalize"]
        if kind == "none":
            return lambda frames, last: frames
        if kind not in _LEARNED:
            raise UserError(f"normalize={kind} reads the whole input: set it to running, global or none, and train")
        statistics = self._learned()
        return Running(statistics) if kind == "running" else lambda frames, last: normalized(frames, statistics)

    def _learned(self) -> Statistics:
        if self.statistics is None:
            raise UserError("this feature has no statistics yet: call train(values)")
        return self.statistics

    def in_pieces(self, sampling_rate: int | None = None) -> FeatureStream:
        """Begin to read pieces of sound, or of frames; see `Feature.in_pieces`."""
        read, stages = self.frames_in_pieces(sampling_rate)
        slopes = [Slopes(self.channels, order) for order in range(self._order)]
        stack = Stack(self.channels * (1 + len(slopes)), self._stack)
        return VectorStream(read, [*stages, *slopes, self._normalizer(), stack])

    def growing(self, sampling_rate: int | None = None) -> FeatureStream:
        """Begin to read pieces of sound, or of frames, for a model that needs the whole; see `Feature.growing`."""
        read, _ = self.frames_in_pieces(sampling_rate)
        rate = {} if sampling_rate is None else {"sampling_rate": sampling_rate}

        def so_far(pieces: list[Any], last: bool) -> Any:
            whole: Any = np.concatenate(pieces) if pieces else []
            return ({"array": whole, **rate} if rate else whole) if len(whole) or last else None

        return GrowingStream(read, so_far, self.encode, self.nothing()[:0])

    def frames_in_pieces(self, sampling_rate: int | None) -> tuple[Callable[[Any], FloatArray], list[Stage]]:
        """Return what reads one piece, which may be empty, and what makes frames `(P, channels)` of it.

        Raises:
            UserError: `frames` reads the whole input, or the sampling rate is not for it.
        """
        raise UserError(
            f"{type(self).__name__} reads its input as a whole: give it frames_in_pieces, or set data.source_feature "
            "to LogMel, Waveform or Frames"
        )


class Frames(VectorFeature):
    """Ready feature vectors, such as MFCCs, as they come in a column of lists of frames.

    Args:
        channels: number of values of a frame.
        cepstra: if the values are cepstra of the mel scale from c_0 on, the lowest and the highest frequency of their
            filters in hertz, which `warp` of `spec_augment` needs.

    Raises:
        UserError: a setting is out of its range.
    """

    random_settings: ClassVar[tuple[str, ...]] = (*VectorFeature.random_settings, "cepstra")
    medium: ClassVar[Medium | None] = "frames"
    column_kind: ClassVar[str] = "a list of frames, each a list of numbers,"
    input_kind: ClassVar[str] = "an array of frames (T, F), or a list of lists of numbers"
    rows_at_once: ClassVar[int] = 200

    def __init__(
        self,
        channels: int,
        deltas: int = 0,
        normalize: Normalization = "utterance",
        stack: int = 1,
        *,
        spec_augment: SpecAugment | None = None,
        cepstra: Sequence[float] | None = None,
        store: bool = True,
    ) -> None:
        if channels < 1:
            raise UserError(f"channels must be at least 1, but is {channels}")
        if cepstra is not None and not (len(cepstra) == 2 and 0 <= cepstra[0] < cepstra[1]):
            raise UserError(f"cepstra must be two frequencies, 0 <= lowest < highest, but is {list(cepstra)}")
        self._cepstra = None if cepstra is None else (cepstra[0], cepstra[1])
        plain = None if cepstra is None else list(cepstra)
        super().__init__(deltas, normalize, stack, spec_augment, store=store, channels=channels, cepstra=plain)

    @property
    def channels(self) -> int:
        """Number of values of a frame."""
        return int(self.config["channels"])

    @property
    def band(self) -> Band | None:
        """`cepstra`."""
        return self._cepstra

    @property
    def cepstral(self) -> bool:
        """Whether `cepstra` is set."""
        return self._cepstra is not None

    def accepts_column(self, column: object) -> bool:
        """Tell whether a column holds lists of lists of numbers."""
        for _ in range(2):
            if not is_column(column, "List", "LargeList"):
                return False
            column = column.feature
        return is_column(column, "Value") and column.dtype.startswith(("float", "int", "uint"))

    def accepts(self, raw: object) -> bool:
        """Tell whether `raw` is a sequence of frames."""
        if hasattr(raw, "ndim"):
            return bool(raw.ndim == 2)
        return isinstance(raw, list) and bool(raw) and isinstance(raw[0], list) and not _nested(raw[0])

    def show(self, raw: Any) -> str:
        """Return the number of frames."""
        return "no frames" if raw is None else f"{len(raw)} frames"

    def frames(self, raw: Any) -> FloatArray:
        """Check one sequence of frames."""
        return check_frames(raw, self.channels)

    def frames_in_pieces(self, sampling_rate: int | None) -> tuple[Callable[[Any], FloatArray], list[Stage]]:
        """Check each piece."""
        if sampling_rate is not None:
            raise UserError("frames have no sampling rate: leave sampling_rate out")
        return partial(check_frames, channels=self.channels, least=0), []

    def measure(self, raw: Sequence[Any]) -> list[int]:
        """Count positions without computing them."""
        return [-(-len(value) // self._stack) for value in raw]


def _nested(frame: list[Any]) -> bool:
    return bool(frame) and isinstance(frame[0], list)


def check_frames(raw: Any, channels: int, least: int = 1) -> FloatArray:
    """Read ready frames `(T, channels)`, T >= `least`.

    Raises:
        UserError: they are not numbers, not finite, or of another shape.
    """
    try:
        array = np.asarray(raw, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(
            "expected an array of frames (T, F), or a list of lists of numbers, but it cannot be read as numbers: "
            f"{error}"
        ) from error
    if array.shape == (0,):
        array = array.reshape(0, channels)
    if array.ndim != 2 or len(array) < least or array.shape[1] != channels:
        raise UserError(
            f"expected frames (T, {channels}) with T >= {least}, but got the shape {array.shape}: mend it, or set "
            "channels"
        )
    if np.iscomplexobj(raw) or not np.isfinite(array).all():
        raise UserError("expected finite real numbers in the frames, but some are not")
    return array
