"""The two endpoints: whole outputs in batches, and one output in pieces."""

import inspect
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import litserve
import torch
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.responses import JSONResponse

from lit_seq2seq.hub import Loading
from lit_seq2seq.pipelines import load_model, override
from lit_seq2seq.predictor import Output, Predictor
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.serve.schema import GenerateRequest, GenerateResponse, Limits
from lit_seq2seq.types import UserError


async def explain(request: Request, error: RequestValidationError) -> JSONResponse:
    """Say what is wrong with a request, without repeating it: it may be no text, or no numbers that JSON can tell."""
    told = [{name: one[name] for name in ("type", "loc", "msg")} for one in error.errors()]
    return JSONResponse({"detail": told}, 422)


class Work(NamedTuple):
    """What a request asks for."""

    raw: Any
    config: GenerationConfig


class Refusal(NamedTuple):
    """Why an input cannot be read."""

    message: str


class Decode:
    """The `decode_request` of an endpoint, in whose signature LitServe looks for the kind of the requests.

    Args:
        api: the endpoint.
    """

    def __init__(self, api: "Api") -> None:
        self.api = api

    @property
    def __signature__(self) -> inspect.Signature:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Signature([inspect.Parameter("request", kind, annotation=self.api.request)])

    def __call__(self, request: GenerateRequest) -> Work:
        """Read a request."""
        return self.api.work(request)


class Api(litserve.LitAPI):  # type: ignore[misc]
    """Base of the endpoints: loads the model in each worker, and admits requests in the web server.

    LitServe fails all requests of a batch for one, and can no longer say what is wrong once a stream has begun.
    Requests are therefore checked before they are queued, in `authorize`, which LitServe calls for each.

    Args:
        model: folder or hub id.
        loading: where it comes from and what it may run.
        generation: options of generation of the model.
        request: the kind of its requests.
        limits: what requests may ask for.
        threads: number of torch's threads in each worker.
        dtype: what to compute in.
        **options: see `litserve.LitAPI`.
    """

    def __init__(
        self,
        model: str,
        loading: Loading,
        generation: GenerationConfig,
        request: type[GenerateRequest],
        limits: Limits,
        threads: int,
        dtype: torch.dtype,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.model, self.loading = model, loading
        self.generation = generation
        self.request = request
        self.limits = limits
        self.threads, self.dtype = threads, dtype
        self.decode_request = Decode(self)

    def setup(self, device: str) -> None:
        """Load the model."""
        torch.set_num_threads(self.threads)
        self.predictor = Predictor(load_model(self.model, **self.loading), device, self.dtype)

    async def authorize(self, request: Request) -> None:
        """Refuse what is too large, too long, or asks for what there is not."""
        limits = self.limits
        if int(request.headers.get("content-length", 0)) > limits.max_bytes:
            raise HTTPException(413, f"the request must have at most {limits.max_bytes} bytes")
        try:
            asked = self.request.model_validate_json(await request.body())
        except ValidationError:
            return  # the server itself says what is wrong with it
        await self.admit(asked)

    async def admit(self, asked: GenerateRequest) -> None:
        """Refuse what is too long, or asks for what there is not."""
        limits = self.limits
        if asked.size() > limits.max_length:
            raise HTTPException(413, f"the input has a length of {asked.size()}: must be at most {limits.max_length}")
        try:
            config = self.work(asked).config
        except UserError as error:
            raise HTTPException(422, str(error)) from error
        for name, most in (("num_beams", limits.max_beams), ("num_return_sequences", limits.max_beams)):
            if getattr(config, name) > most:
                raise HTTPException(422, f"{name}={getattr(config, name)}: must be at most {most} here")
        if config.max_new_tokens > limits.max_new_tokens:
            raise HTTPException(
                422, f"max_new_tokens={config.max_new_tokens}: must be at most {limits.max_new_tokens} here"
            )

    def work(self, request: GenerateRequest) -> Work:
        """Join the options of a request with those of the model, whose own length is cut to what is allowed here."""
        own = self.generation
        own = replace(own, max_new_tokens=min(own.max_new_tokens, self.limits.max_new_tokens))
        return Work(request.raw(), override(own, request.options()))


class GenerateApi(Api):
    """Whole outputs; requests that wait together go through the network together."""

    def batch(self, inputs: list[Work]) -> list[Work]:
        """Leave a batch as it is."""
        return inputs

    def predict(self, batch: list[Work]) -> list[list[Output] | Refusal]:
        """Generate, together what has the same options."""
        results: list[list[Output] | Refusal] = [Refusal("")] * len(batch)
        for config in dict.fromkeys(work.config for work in batch):
            places = [place for place, work in enumerate(batch) if work.config == config]
            for place, found in zip(places, self._generate([batch[p].raw for p in places], config), strict=True):
                results[place] = found
        return results

    def _generate(self, raw: list[Any], config: GenerationConfig) -> list[list[Output] | Refusal]:
        try:
            return list(self.predictor.stream(raw, config))
        except UserError as error:
            if len(raw) == 1:
                return [Refusal(str(error))]
            return [found for one in raw for found in self._generate([one], config)]

    def unbatch(self, output: list[list[Output] | Refusal]) -> list[list[Output] | Refusal]:
        """Leave a batch as it is."""
        return output

    def encode_response(self, output: list[Output] | Refusal) -> GenerateResponse:
        """Make the response; an input that cannot be read gets the status 422."""
        if isinstance(output, Refusal):
            refused: Any = JSONResponse({"detail": output.message}, 422)
            return refused  # type: ignore[no-any-return]
        return GenerateResponse.model_validate({"outputs": [{"text": o.text, "score": o.score} for o in output]})


class StreamApi(Api):
    """One output in pieces, as lines of JSON: `{"text": ...}`, the last one `{"done": true}` or `{"error": ...}`."""

    def work(self, request: GenerateRequest) -> Work:
        """Search greedily unless the request says otherwise."""
        options = {"num_beams": 1, "num_return_sequences": 1, **request.options()}
        for name in ("num_beams", "num_return_sequences"):
            if options[name] > 1:
                raise UserError(f"{name}={options[name]}: must be 1 to stream, use /predict")
        raw, config = super().work(request.model_copy(update=options))
        return Work(raw, config)

    def predict(self, work: Work) -> Iterator[str]:
        """Generate piece by piece, within the time allowed."""
        started = time.monotonic()
        try:
            for piece in self.predictor.stream_text(work.raw, work.config):
                yield json.dumps({"text": piece}, ensure_ascii=False)
                if time.monotonic() - started > self.limits.timeout:
                    raise UserError(f"the output took more than {self.limits.timeout:g} seconds")
            yield json.dumps({"done": True})
        except UserError as error:
            yield json.dumps({"error": str(error)}, ensure_ascii=False)

    def encode_response(self, output: Iterator[str]) -> Any:
        """Put each piece on a line."""
        for line in output:
            yield f"{line}\n"
