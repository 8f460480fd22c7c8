"""The page at `/docs`: what the server answers, and a form to try it. It loads nothing from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left; vertical-align: top }}
code, textarea, pre {{ font: 14px/1.5 ui-monospace, monospace }}
textarea {{ width: 100%; height: 6rem; box-sizing: border-box }}
pre {{ background: #f5f5f5; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; min-height: 1.5rem }}
</style></head><body>
<h1>{title}</h1>
<table><tr><th>route</th><th>what it does</th></tr>{routes}</table>
<h2>A request</h2>
<p>JSON with <code>{input}</code>, and options of generation where they should differ from the model's own:</p>
<table><tr><th>name</th><th>type</th><th>meaning</th></tr>{fields}</table>
<h2>Try it</h2>
<p><textarea id="body" aria-label="request">{example}</textarea></p>
{file}<p>{buttons}</p>
<pre id="answer"></pre>
<p>The same as a schema: <a href="/openapi.json">/openapi.json</a></p>
<script>
async function send(path) {{
  const shown = document.getElementById("answer"), text = document.getElementById("body").value;
  const body = path === "/predict/file" ? document.getElementById("file").files[0] : text;
  shown.textContent = "...";
  try {{
    const answer = await fetch(path, {{method: "POST", headers: {{"Content-Type": "application/json"}}, body}});
    shown.textContent = (answer.ok ? "" : answer.status + " ") + await answer.text();
  }} catch (error) {{ shown.textContent = String(error); }}
}}
for (const button of document.querySelectorAll("button")) button.onclick = () => send(button.dataset.path);
</script></body></html>
"""


def overview(schema: dict[str, Any], request: str) -> str:
    """Write the page.

    Args:
        schema: OpenAPI's, as FastAPI makes it.
        request: name of the requests in it.
    """
    fields = schema["components"]["schemas"][request]
    (given,) = fields["required"]
    inputs = {given: fields["properties"].pop(given)} | fields["properties"]
    routes = {path: next(iter(methods.items())) for path, methods in schema["paths"].items()}
    tried = [path for path, (method, _) in routes.items() if method == "post"]
    return _PAGE.format(
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
