"""What `worker.py` is, without vLLM: a process that speaks the protocol, one byte a token.

The prompt says what is done: `say TEXT` writes that; `hang` writes a token and waits to be aborted;
`drip` writes two with a pause between them; `die` writes one token and dies; `fail` fails that
request; `aborts` writes how many requests were aborted; `options` writes what it was asked for.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from iblip.engines.language_model.vllm.worker import read_message, write_message

EOS = 256
PAUSE_S = 0.1


def main() -> None:
    source, target = sys.stdin.buffer, sys.stdout.buffer
    opening, _ = read_message(source) or sys.exit(0)
    if "birth" in opening["engine"]:  # how often it was started
        with Path(opening["engine"]["birth"]).open("a") as stream:
            stream.write(f"{os.getpid()}\n")
    if "child" in opening["engine"] and os.fork() == 0:  # as vLLM has one, which outlives it
        time.sleep(600)
    fault = opening["engine"].get("fault")
    if fault:
        write_message(target, {"kind": "failed", "id": None, "error": fault})
        print("the log's last line", file=sys.stderr)
        sys.exit(7)
    write_message(target, {"kind": "ready", "vllm": "0"})
    aborts = 0
    while (message := read_message(source)) is not None:
        header, body = message
        if header["kind"] == "abort":
            aborts += 1
            continue
        text = bytes(i for i in header["token_ids"] if i < 256).decode()
        command, _, rest = text.partition(" ")
        if command == "die":
            _tell(target, header, b"d", finished=False)
            os._exit(9)
        elif command == "hang":
            _tell(target, header, b"h", finished=False)
        elif command == "drip":
            _tell(target, header, b"d", finished=False)
            time.sleep(PAUSE_S)
            _tell(target, header, [ord("d"), EOS], finished=True)
        elif command == "fail":
            error = {"kind": "failed", "id": header["id"], "error": "no memory left"}
            write_message(target, error)
        else:
            asked = {"bytes": len(body), "visual": header["visual"], **header["params"]}
            said = {"say": rest, "aborts": str(aborts), "options": json.dumps(asked)}[command]
            _say(target, header, said.encode())


def _say(target, header, text):
    """As vLLM does: up to `max_tokens`, and the end of sequence if there is room for it."""
    limit = header["params"]["max_tokens"]
    tokens = [*text, EOS][:limit]
    for index, token in enumerate(tokens):
        _tell(target, header, [token], finished=index == len(tokens) - 1)


def _tell(target, header, tokens, *, finished):
    logprobs = None
    if "logprobs" in header["params"]:  # the token itself, though it be the least likely
        logprobs = [[-3.0, [[1, -0.5], [2, -1.0], [token, -3.0]]] for token in tokens]
    message = {"kind": "tokens", "id": header["id"], "tokens": list(tokens)}
    write_message(target, {**message, "logprobs": logprobs, "finished": finished})


if __name__ == "__main__":
    main()
