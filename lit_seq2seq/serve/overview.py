"""The page at `/docs`: what the server answers, and a form to try it. It loads nothing from elsewhere."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from string import Template
from typing import Any

_PAGE = Template(Path(__file__).with_name("overview.html").read_text(encoding="utf-8"))


def overview(schema: dict[str, Any], request: str) -> str:
    """Write the page for OpenAPI's `schema`, as FastAPI makes it, and the name that its requests have there."""
    fields = schema["components"]["schemas"][request]
    (given,) = fields["required"]
    inputs = {given: fields["properties"].pop(given)} | fields["properties"]
    routes = {path: next(iter(methods.items())) for path, methods in schema["paths"].items()}
    tried = [path for path, (method, _) in routes.items() if method == "post"]
    return _PAGE.substitute(
        title=escape(schema["info"]["title"]),
        routes="".join(
            _row(f"<code>{method.upper()} {escape(path)}</code>", escape(route.get("description", "")))
            for path, (method, route) in routes.items()
        ),
        fields="".join(
            _row(f"<code>{escape(name)}</code>", escape(_kind(field)), escape(field.get("description", "")))
            for name, field in inputs.items()
        ),
        input=escape(given),
        example=escape(json.dumps({given: _empty(inputs[given])})),
        file='<p>or the file itself: <input type="file" id="file"></p>' if "/predict/file" in tried else "",
        buttons=" ".join(f'<button data-path="{path}">POST {path}</button>' for path in tried),
    )


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _kind(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_kind(one) for one in field["anyOf"] if one.get("type") != "null")
    inner = field.get("items")
    return f"list of {_kind(inner)}" if inner else str(field.get("type", "anything"))


def _empty(field: dict[str, Any]) -> Any:
    kind = field.get("type") or field["anyOf"][0]["type"]
    return {"string": "", "array": [], "object": {}}[kind]
