"""A recording or an image as the body of a request."""

import base64
from typing import Any

import litserve
from fastapi import HTTPException, Request
from litserve.server import RegularRequestHandler
from pydantic import ValidationError

from lit_seq2seq.serve.api import GenerateApi
from lit_seq2seq.serve.schema import FileRequest, GenerateResponse


def add_upload(server: litserve.LitServer, api: GenerateApi) -> None:
    """Add `POST /predict/file`, for models that read files: `curl --data-binary @FILE URL/predict/file?num_beams=5`.

    Args:
        server: gets the route.
        api: the endpoint that answers.
    """
    if api.request is not FileRequest:
        return
    handler = RegularRequestHandler(api, server)

    async def upload(request: Request) -> Any:
        options: dict[str, Any] = dict(request.query_params)
        try:
            asked = FileRequest.model_validate({**options, "data": base64.b64encode(await request.body())})
        except ValidationError as error:
            raise HTTPException(
                422, error.errors(include_url=False, include_input=False, include_context=False)
            ) from error
        await api.admit(asked)
        return await handler.handle_request(asked, FileRequest)

    server.app.add_api_route("/predict/file", upload, methods=["POST"], response_model=GenerateResponse)
