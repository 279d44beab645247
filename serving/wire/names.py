"""Names of models, tensors, headers and request parameters. Imports nothing."""

VERSION = 4
"""Of this wire format; a client refuses a server that speaks another."""

MODEL = "instructblip"
"""What callers ask."""

UNARY = "instructblip_unary"
"""The same in one response."""

CHAIN = "visual_prompt"
"""The ensemble of vision encoder and Q-Former."""

ENCODER, QFORMER = "vision_encoder", "qformer"
"""The two models of the ensemble."""

PIXELS = "pixels"

IMAGE_EMBEDS = "image_embeds"
"""What the first hands to the second."""

IMAGE = "image"
"""Encoded images, instead of `PIXELS`."""

PROMPT = "prompt"

VISUAL_PROMPT = "visual_prompt"

TEXT = "text"

FINISH = "finish"

CALLS = 288
"""Requests that a Python model may have under way at another. More would wait in a queue of
Triton's that knows neither deadlines nor callers that have gone, so `UNARY` refuses them."""

TOKEN = "iblip-token"
"""The HTTP header that has the token, where the server wants one."""

GRPC_TOKEN = f"triton-grpc-protocol-{TOKEN}"
"""The same as gRPC metadata: Triton puts this before the name of a header."""

PREPROCESSING = "preprocessing"
"""A request parameter: how `IMAGE` becomes RGB, one of `export.images.READINGS`."""

STREAM = "stream"
"""A request parameter: false asks for the whole answer in one response."""

CANCEL_KEY = "cancel_key"
"""A request parameter: a secret of the caller's own, by which `CANCEL` ends the request."""

PRIORITY = "priority_class"
"""A request parameter: one of `PRIORITIES`. Triton itself takes `priority`, and wants a number."""

CANCEL = "cancel"
"""The one parameter of a request that cancels others: their `CANCEL_KEY`. For callers that cannot
close a stream: Triton 2.51 does not tell a model that a Python model, its caller, has gone."""

CALL_KEY = "call_key"
"""A request parameter: shows that `UNARY` is the caller, whose `PACKED` parameters are believed."""

PACKED = "options_json"
"""A request parameter that holds all the others, as one JSON object in a string. The one-answer
model sends it: a Python model of Triton 2.51 cannot pass a number with a fraction on."""
