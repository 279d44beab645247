"""`Model`: one released model, with its names, files, geometry and the demo that stands for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from iblip.export.families import FAMILIES
from iblip.export.families.family import Family
from iblip.export.models.geometry import QUERIES, Config
from iblip.export.models.parameters import parameters

AT_SIZE: frozenset[str] = frozenset(
    {
        "instructblip-vicuna-7b",
        "instructblip-vicuna-13b",
        "instructblip-flan-t5-xl",
        "instructblip-flan-t5-xxl",
    }
)
"""Names of the models that have been built at their true geometry, with random weights."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One released model.

    Attributes:
        name: ours; the last part of the hub's id, if the hub has it in transformers' form.
        architecture: a key of `FAMILIES`.
        vision: the ViT's config.
        qformer: the Q-Former's; `None` if neighbouring patches are merged instead.
        text: the language model's, with its `model_type`.
        num_query_tokens: rows of one visual prompt.
        merged_patches: number of patches that become one of its rows; `None` with a Q-Former.
        prompt_template: text around a question; `None` is the family's.
        stop: strings that end an answer; `None` is the family's.
        lora_alpha: of LoRA in the original's file, unless that says another; `None` if it has none.
        hub: id of the checkpoint in transformers' form; `None` if there is none.
        lavis: name in `--model lavis:…`; `None` if LAVIS does not have the model.
        minigpt4: name in `--model minigpt4:…`, likewise.
        files: the original's name of the file or directory of every part.
        image_token_id: the placeholder in the hub's tokenizer.
        demo: the checkpoint in `checkpoints/` of the same modules, which is verified in its place.
    """

    name: str
    architecture: str
    vision: Config
    qformer: Config | None
    text: Config
    num_query_tokens: int = QUERIES
    merged_patches: int | None = None
    prompt_template: str | None = None
    stop: tuple[str, ...] | None = None
    lora_alpha: float | None = None
    hub: str | None = None
    lavis: str | None = None
    minigpt4: str | None = None
    files: Mapping[str, str]
    image_token_id: int | None = None
    demo: str

    @property
    def family(self) -> Family:
        """The family that it belongs to."""
        return FAMILIES[self.architecture]

    @property
    def parameters(self) -> Mapping[str, int]:
        """Number of parameters by part: vision encoder, Q-Former, projection, language model."""
        return parameters(
            self.vision,
            self.qformer,
            self.text,
            queries=self.num_query_tokens,
            merged_patches=self.merged_patches,
            reads_instruction=self.family.projector == "instruction_qformer",
        )

    @property
    def original(self) -> str:
        """Name in `--model` for the original's files."""
        return f"lavis:{self.lavis}" if self.lavis else f"minigpt4:{self.minigpt4}"

    @property
    def llm_engines(self) -> tuple[str, ...]:
        """Engines that can run its language model."""
        everywhere = "onnxruntime", "openvino"
        return everywhere if self.text["model_type"] == "t5" else (*everywhere, "vllm")

    @property
    def built_at_size(self) -> bool:
        """Whether it has been built at its true geometry, not only as `demo`."""
        return self.name in AT_SIZE

    @property
    def projection(self) -> tuple[int, int]:
        """Shape of its projection to the language model: outputs, inputs."""
        width = self.text["d_model" if self.text["model_type"] == "t5" else "hidden_size"]
        if self.qformer is None:
            return width, self.vision["hidden_size"] * (self.merged_patches or 1)
        return width, self.qformer["hidden_size"]

    @property
    def image_size(self) -> int:
        """Height and width of its images, in pixels."""
        size: int = self.vision["image_size"]
        return size

    def to_json(self) -> dict[str, Any]:
        """Returns every field, and what follows from them, JSON-ready."""
        return {
            **asdict(self),
            "family": self.family.name,
            "images": self.family.images,
            "original": self.original,
            "parameters": dict(self.parameters),
            "llm_engines": list(self.llm_engines),
            "built_at_size": self.built_at_size,
        }
