"""A hook of schemathesis: half the bodies that it makes get messages that can be answered.

Made up freely, messages have no image that can be read, so nothing would get as far as a server.
"""

from __future__ import annotations

import schemathesis

PNG = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PARTS = [
    {"type": "image_url", "image_url": {"url": PNG}},
    {"type": "text", "text": "What digit is in the image?"},
]


@schemathesis.hook
def map_body(context, body):
    """A body to send, in place of the one that was made up."""
    if not isinstance(body, dict):
        return body
    if isinstance(body.get("timeout"), float):
        body = {**body, "timeout": 60.0}  # an answer in less is a 504, as it should be
    if len(repr(body)) % 2:
        return {**body, "messages": [{"role": "user", "content": PARTS}]}
    return body
