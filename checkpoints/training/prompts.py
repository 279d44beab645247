"""Prompt forms: how a family's originals are asked, and what ends their answers.

The sources are Salesforce's LAVIS (`blip2_opt.py`, `blip2_t5.py`) and Vision-CAIR's MiniGPT-4
(`minigpt4_eval.yaml`, `minigpt4_llama2_eval.yaml`, `prompts/alignment.txt`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .questions import Question


@dataclass(frozen=True)
class Form:
    """How questions are put to a model.

    Attributes:
        template: what stands around a user's `{prompt}`, and where the `{image}` is. Its two
            pieces are tokenised apart; special tokens go with the first that is not empty.
        question: what a user writes to ask a `{question}`; descriptions are asked for as they are.
        lead: text between prompt and answer. Where words carry the space before them, as in
            byte-level BPE, an answer begins with one.
        end: text that ends an answer; empty where the tokenizer's end of sequence does.
        stop: strings at which an answer is cut.
    """

    template: str = "{image}{prompt}"
    question: str = "{question}"
    lead: str = ""
    end: str = ""
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.template.count("{image}") != 1 or self.template.count("{prompt}") != 1:
            raise ValueError(f"{self.template!r} needs one {{image}} and one {{prompt}}")

    @property
    def before(self) -> str:
        """The template's text before the image."""
        return self.template.split("{image}")[0]

    def after(self, prompt: str) -> str:
        """The template's text behind the image, around a user's prompt."""
        return self.template.split("{image}")[1].replace("{prompt}", prompt)

    def put(self, question: Question) -> Question:
        """A question as a user of this form writes it."""
        if not question.short:  # a description
            return question
        return replace(question, prompt=self.question.format(question=question.prompt))


BLIP2_T5 = Form(question="Question: {question} Answer:")
FORMS: Mapping[str, Form] = {
    "plain": Form(),
    "blip2-opt": replace(BLIP2_T5, lead=" ", end="\n"),
    "blip2-t5": BLIP2_T5,
    "minigpt4": Form(
        "###Human: <Img>{image}</Img> {prompt} ###Assistant: ", end="###", stop=("###",)
    ),
    "minigpt4-llama2": Form("[INST] <Img>{image}</Img> {prompt} [/INST] "),
}
