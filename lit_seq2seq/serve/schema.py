"""What a server reads and writes, as JSON; the OpenAPI page shows it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from lit_seq2seq.features import Feature
from lit_seq2seq.features.feature import Medium
from lit_seq2seq.search.config import SearchOption, search_options
from lit_seq2seq.types import UserError


def _field(one: SearchOption) -> Any:
    field: Any = Field  # whose overloads know no mapping
    limits = {} if one.allowed is None else one.allowed.schema
    return one.kind | None, field(None, description=one.about, **limits)


_PART = "this option names files or classes, which a request may not: save the model with it"
_OPTIONS: dict[str, Any] = {one.name: _field(one) for one in search_options() if not one.part}


class GenerateRequest(create_model("Options", **_OPTIONS)):  # type: ignore[misc]
    """Options of generation, those of the model where left out; see `GenerationConfig`."""

    model_config = ConfigDict(extra="forbid")
    given: ClassVar[str]
    """Name of the input."""

    def raw(self) -> Any:
        """Return the input."""
        return getattr(self, self.given)

    def size(self) -> int:
        """Count what `RequestLimits.max_length` limits."""
        return len(self.raw())

    def options(self) -> dict[str, Any]:
        """Return the options that are given."""
        return {name: value for name in GenerateRequest.model_fields if (value := getattr(self, name)) is not None}


class TextRequest(GenerateRequest):
    """A text, limited by its characters."""

    given = "text"
    text: str = Field(description="the input")


class RecordRequest(GenerateRequest):
    """A record, in any of the forms that `Records` reads, limited by the characters of its text."""

    given = "record"
    record: str | dict[str, Any] | list[Any] = Field(description="the input")

    def size(self) -> int:
        """Count characters."""
        return len(str(self.record))


class FramesRequest(GenerateRequest):
    """Ready feature vectors, limited by their number."""

    given = "frames"
    frames: list[list[float]] = Field(description="the input, one list of numbers for each position")


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

    given = "data"
    data: Annotated[bytes, BeforeValidator(_from_base64)] = Field(description="the file, in base64", min_length=1)

    def size(self) -> int:
        """Return 0: the size of the whole request is limited instead."""
        return 0


class GeneratedText(BaseModel):
    """One output."""

    text: str
    score: float = Field(description="what outputs are ranked by")
    tokens: list[str] | None = Field(None, description="its symbols; this and what follows: if details asks for it")
    token_scores: list[float] | None = Field(None, description="log-probability of each symbol")
    alignment: str | None = Field(None, description="source-output pairs of symbols, such as 0-0 1-2")
    source_tokens: list[str] | None = Field(None, description="symbols of the source")
    attention: list[list[float]] | None = Field(None, description="for each symbol a weight for each source symbol")
    regions: dict[str, int] | None = Field(None, description="of several sources how many symbols each has")
    delays: list[int] | None = Field(None, description="source positions read before each symbol, under a policy")
    source_length: int | None = Field(None, description="number of source positions, beside delays")
    times: list[float] | None = Field(None, description="when each symbol is written: milliseconds or source positions")
    emission: dict[str, float] | None = Field(None, description="how a transducer spends its frames")
    met: bool | None = Field(None, description="whether it meets the constraints")


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
        max_sessions: greatest number of live streams at a time.
        timeout: seconds that a request may wait for its turn, that a stream may last, and that a live one may be idle.
    """

    max_length: int = 2000
    max_bytes: int = 10_000_000
    max_new_tokens: int = 256
    max_beams: int = 10
    max_sessions: int = 64
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


def mistakes(error: RequestValidationError | ValidationError) -> list[dict[str, Any]]:
    """Say what is wrong with a request, without repeating it: it may be no text, or no numbers that JSON can tell."""
    parts = {one.name for one in search_options() if one.part}
    told = [{name: one[name] for name in ("type", "loc", "msg")} for one in error.errors()]
    return [one | {"msg": _PART} if parts.intersection(one["loc"]) else one for one in told]
