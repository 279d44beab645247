"""The gateway: OpenAI's chat completions over HTTP, answered by one or several Triton servers.

`app.py` is the ASGI application, `running.py` runs it, `process.py` runs it beside a server. A
request goes this way: `callers.py` (who asks, and how much at once), `bodies.py` (the body, within
limits), `parameters.py` and `response_format.py` (what is asked for), `conversation.py` (messages
to a prompt and images), `images.py` (decoded with the client's own code, or fetched), `servers.py`
(which server), and back through `completions.py` (an answer as OpenAI writes it). `errors.py` has
the status of every error; `watching.py` cancels what nobody waits for; `openapi.py` publishes all
of it; `access_log.py`, `metrics.py` and `tracing.py` say what has happened; `page.py` is the page
from which a browser asks. Talks to Triton through `serving.client`, and knows nothing of a build's
directory but its tokenizer (`token_texts.py`).
"""
