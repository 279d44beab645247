"""`Family`: what is particular to a kind of model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Projector = Literal["instruction_qformer", "qformer", "patch_merge"]
"""What makes a visual prompt of an image's features: a Q-Former that reads the instruction, one
that does not, or a linear layer over neighbouring patches."""

Images = Literal["one", "frames", "places"]
"""How many images a request may have: one; several, as the frames of a video are, one after another
before the prompt; or several, each at its own place in the prompt."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of checkpoint, and what is particular to it.

    Attributes:
        name: `instructblip`.
        architecture: as `config.json` names it; where transformers has the model, its class.
        processor: transformers' class for it, by name.
        projector: see `Projector`.
        images: see `Images`.
        prompt_template: what stands around a user's `{prompt}`, and where the `{image}` is.
        ends_as_configured: the language model's config says which token ends an answer, whatever
            the tokenizer's end-of-sequence token is.
        max_new_tokens: of an answer, where the generation config is silent.
    """

    name: str
    architecture: str
    processor: str
    projector: Projector
    images: Images
    prompt_template: str
    ends_as_configured: bool
    max_new_tokens: int

    @property
    def reads_instruction(self) -> bool:
        """Its Q-Former reads the prompt too, with a tokenizer of its own."""
        return self.projector == "instruction_qformer"
