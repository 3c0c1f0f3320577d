"""An OpenAPI description as one HTML page: no script, no font, no host but ours."""

from __future__ import annotations

import html
import json
from typing import Any

_STYLE = """
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{margin-bottom:0}details{border:1px solid #8886;border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}code,pre{font:13px/1.45 ui-monospace,monospace}pre{overflow-x:auto;padding:.6rem;background:#8882}
b.get,b.post{display:inline-block;width:3.2rem}b.get{color:#0a7}b.post{color:#06c}
table{border-collapse:collapse}td{padding:.15rem .8rem .15rem 0;vertical-align:top}
"""


def page(document: dict[str, Any]) -> str:
    """Return the page of a description; everything in it is escaped."""
    info = document["info"]
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{_text(info['title'])}</title><style>{_STYLE}</style>",
        f"<h1>{_text(info['title'])} {_text(info['version'])}</h1><p>{_text(info['description'])}</p>",
        '<p>The same for machines: <a href="/openapi.json">/openapi.json</a></p>',
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(document, path, method, operation))
    parts.append("<h2>Schemas</h2>")
    for name, schema in document["components"]["schemas"].items():
        parts.append(
            f'<details id="{_text(name)}"><summary><code>{_text(name)}</code></summary>{_code(schema)}</details>'
        )
    return "\n".join(parts) + "</html>\n"


def _operation(document: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> str:
    is_open = "security" not in document or operation.get("security") == []
    rows = [
        f"<tr><td><code>{_text(one['name'])}</code></td><td>{_text(one['in'])}</td>"
        f"<td>{_text(one.get('description', ''))} {_text(', '.join(one['schema'].get('enum', ())))}</td></tr>"
        for one in operation.get("parameters", ())
    ]
    body = ""
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        body += f"<p>Body, <code>{_text(kind)}</code>:</p>{_code(content['schema'])}"
    answers = [
        f"<tr><td><code>{_text(status)}</code></td><td>{_text(', '.join(one.get('content', ())))}</td>"
        f"<td>{_text(one['description'])} {_schema_links(one)}</td></tr>"
        for status, one in operation["responses"].items()
    ]
    return (
        f'<details><summary><b class="{_text(method)}">{_text(method.upper())}</b> <code>{_text(path)}</code> '
        f"{_text(operation['summary'])}</summary><p>{'' if is_open else 'Needs an API key or a token.'}</p>"
        f"<table>{''.join(rows)}</table>{body}<p>Answers:</p><table>{''.join(answers)}</table></details>"
    )


def _schema_links(response: dict[str, Any]) -> str:
    found: list[str] = []
    for content in response.get("content", {}).values():
        schema = content["schema"]
        for one in (schema, *schema.get("anyOf", ())):
            name = one.get("$ref", "").rpartition("/")[2]
            if name and name not in found:
                found.append(name)
    return " ".join(f'<a href="#{_text(name)}">{_text(name)}</a>' for name in found)


def _code(value: Any) -> str:
    return f"<pre>{_text(json.dumps(value, indent=2))}</pre>"


def _text(value: str) -> str:
    return html.escape(value)
