"""Asks through other people's clients, in their environment; prints what each was answered.

    python ask.py URL MODEL IMAGE QUESTION

It knows nothing of this project. The output is one object of JSON: by client, the text whole, the
text streamed, and the numbers of tokens.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import litellm
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

LIMIT, JSON_LIMIT = 20, 60


class Digit(BaseModel):
    """An answer as a class."""

    digit: int = Field(ge=0, le=9)
    is_red: bool


def parts(image: str, question: str) -> list[dict[str, Any]]:
    return [
        {"type": "image_url", "image_url": {"url": image}},
        {"type": "text", "text": question},
    ]


def with_litellm(url: str, model: str, image: str, question: str) -> dict[str, Any]:
    def ask(**options: Any) -> Any:
        return litellm.completion(
            model=f"openai/{model}",
            api_base=url,
            api_key="none",
            messages=[{"role": "user", "content": parts(image, question)}],
            **{"max_tokens": LIMIT, **options},
        )

    answer = ask()
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(stream=True)]
    return {
        "text": answer.choices[0].message.content,
        "streamed": "".join(pieces),
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
        "beams": ask(num_beams=3).choices[0].message.content,
        "parsed": json.loads(
            ask(response_format=Digit, max_tokens=JSON_LIMIT).choices[0].message.content
        ),
    }


def with_langchain(url: str, model: str, image: str, question: str) -> dict[str, Any]:
    chat = ChatOpenAI(base_url=url, api_key="none", model=model, max_tokens=LIMIT)
    own = HumanMessage(content=parts(image, question))  # as OpenAI writes images
    data = image.partition(",")[2]
    block = {"type": "image", "base64": data, "mime_type": "image/webp"}  # as LangChain does
    standard = HumanMessage(content=[block, {"type": "text", "text": question}])
    answer = chat.invoke([own])
    assert chat.invoke([standard]).content == answer.content
    usage = answer.usage_metadata or {}
    beams = chat.bind(extra_body={"num_beams": 3})
    return {
        "text": answer.content,
        "streamed": "".join(chunk.content for chunk in chat.stream([own])),
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "beams": beams.invoke([own]).content,
        "parsed": chat.model_copy(update={"max_tokens": JSON_LIMIT})
        .with_structured_output(Digit)
        .invoke([own])
        .model_dump(),
    }


def main(url: str, model: str, path: str, question: str) -> None:
    data = base64.b64encode(Path(path).read_bytes()).decode()
    call = (url, model, f"data:image/webp;base64,{data}", question)
    print(json.dumps({"litellm": with_litellm(*call), "langchain": with_langchain(*call)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
