"""The page at `/`: one file of HTML, and the policy by which a browser runs nothing but it."""

from __future__ import annotations

import base64
import re
from functools import cache
from hashlib import sha256
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Only the page's own script and style, by their hashes; requests go to the gateway alone."""

HEADERS = {
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "vary": "accept",
    "x-content-type-options": "nosniff",
}


def asks_for_page(request: Request) -> bool:
    """Whether it is a browser that shows what it gets."""
    return "text/html" in request.headers.get("accept", "")


def page_response(request: Request) -> Response:
    """The page; 304 where the browser has it."""
    html, headers = _page()
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(html, headers=headers, media_type="text/html")


@cache
def _page() -> tuple[bytes, dict[str, str]]:
    """The file, and its headers."""
    html = files("iblip.serving.gateway").joinpath("page.html").read_bytes()
    policy = POLICY.format(script=_hashes(html, "script"), style=_hashes(html, "style"))
    etag = f'"{sha256(html).hexdigest()[:32]}"'
    return html, {**HEADERS, "content-security-policy": policy, "etag": etag}


def _hashes(html: bytes, tag: str) -> str:
    """What a policy calls the elements of that name."""
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), html, re.DOTALL)
    return " ".join(
        f"'sha256-{base64.b64encode(sha256(one).digest()).decode()}'" for one in contents
    )
