"""What a server reads and writes, as JSON; the OpenAPI page shows it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lit_seq2seq.features import Feature
from lit_seq2seq.features.feature import Medium
from lit_seq2seq.runtime.config import LengthNormalization
from lit_seq2seq.types import UserError


class GenerateRequest(BaseModel):
    """Options of generation, those of the model where left out; see `GenerationConfig`."""

    model_config = ConfigDict(extra="forbid")

    num_beams: int | None = Field(None, ge=1, description="hypotheses kept; 1 is greedy search")
    num_return_sequences: int | None = Field(None, ge=1, description="outputs, best first")
    max_new_tokens: int | None = Field(None, ge=1, description="greatest length of the output, in symbols")
    min_new_tokens: int | None = Field(None, ge=0)
    no_repeat_ngram_size: int | None = Field(None, ge=0)
    early_stopping: bool | Literal["never"] | None = Field(None, description="whether a beam may end early")
    length_penalty: float | None = None
    length_normalization: LengthNormalization | None = None
    coverage_penalty: float | None = Field(None, description="on source positions that are left out")
    ctc_weight: float | None = Field(None, description="share of CTC in the scores, 0 to 1")
    do_sample: bool | None = Field(None, description="draw each symbol at random")
    temperature: float | None = Field(None, gt=0)
    top_k: int | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    shortlist: bool | None = Field(None, description="choose among likely symbols only, for speed")
    seed: int | None = Field(None, description="of the random numbers")

    def raw(self) -> Any:
        """Return the input."""
        raise NotImplementedError

    def size(self) -> int:
        """Count what `RequestLimits.max_length` limits."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """Return the options that are given."""
        return {name: value for name in GenerateRequest.model_fields if (value := getattr(self, name)) is not None}


class TextRequest(GenerateRequest):
    """A text."""

    text: str = Field(description="the input")

    def raw(self) -> str:
        """Return the text."""
        return self.text

    def size(self) -> int:
        """Count characters."""
        return len(self.text)


class RecordRequest(GenerateRequest):
    """A record, in any of the forms that `Records` reads."""

    record: str | dict[str, Any] | list[Any] = Field(description="the input")

    def raw(self) -> Any:
        """Return the record."""
        return self.record

    def size(self) -> int:
        """Count the characters of its text."""
        return len(str(self.record))


class FramesRequest(GenerateRequest):
    """Ready feature vectors."""

    frames: list[list[float]] = Field(description="the input, one list of numbers for each position")

    def raw(self) -> list[list[float]]:
        """Return the frames."""
        return self.frames

    def size(self) -> int:
        """Count frames."""
        return len(self.frames)


def _from_base64(value: object) -> bytes:
    """Read base64, in one line or several; nothing in it is passed over, as it would be another file then."""
    if isinstance(value, bytes):  # the body of a request, as it is
        return value
    if not isinstance(value, str):
        raise ValueError("expected the file as a text in base64")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except ValueError as error:
        raise ValueError(f"expected the file in base64, but it is not: {error}") from error


class FileRequest(GenerateRequest):
    """A recording or an image, as the bytes of a file in any common format."""

    data: Annotated[bytes, BeforeValidator(_from_base64)] = Field(description="the file, in base64", min_length=1)

    def raw(self) -> bytes:
        """Return the bytes."""
        return self.data

    def size(self) -> int:
        """Return 0: the size of the whole request is limited instead."""
        return 0


class GeneratedText(BaseModel):
    """One output."""

    text: str
    score: float = Field(description="what outputs are ranked by")


class GenerateResponse(BaseModel):
    """The outputs, best first."""

    outputs: list[GeneratedText]


@dataclass(frozen=True)
class RequestLimits:
    """What a request may ask for.

    Attributes:
        max_length: greatest length of an input: characters of a text or record, number of frames.
        max_bytes: greatest size of a request.
        max_new_tokens: greatest length of an output, in symbols.
        max_beams: greatest number of beams or outputs.
        timeout: seconds that a request may wait for its turn, and that a stream may last.
    """

    max_length: int = 2000
    max_bytes: int = 10_000_000
    max_new_tokens: int = 256
    max_beams: int = 10
    timeout: float = 30.0


def request_of(feature: Feature) -> type[GenerateRequest]:
    """Return the request that carries what a source feature reads.

    Raises:
        UserError: there is none.
    """
    if feature.medium is None:
        raise UserError(f"a model that reads {type(feature).__name__} cannot be served: use lit-seq2seq generate")
    return _REQUESTS[feature.medium]


_REQUESTS: Mapping[Medium, type[GenerateRequest]] = {
    "text": TextRequest,
    "record": RecordRequest,
    "frames": FramesRequest,
    "audio": FileRequest,
    "image": FileRequest,
}
