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
def map_case(context, case):
    """A request to send, in place of the one that was made up. One made to be wrong stays so."""
    if not isinstance(case.body, dict) or case.meta.generation.mode.is_negative:
        return case
    if isinstance(case.body.get("timeout"), float):
        # An answer in less is a 504, as it should be.
        case.body = {**case.body, "timeout": 60.0}
    if len(repr(case.body)) % 2:
        case.body = {**case.body, "messages": [{"role": "user", "content": PARTS}]}
    return case
