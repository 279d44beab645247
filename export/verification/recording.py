"""Records what the reference computes for a few examples, block by block.

One call of `generate` for one token runs the whole chain, from the image to the first token's
logits. Hooks on transformers' own modules keep the tensors that pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from iblip.export.components.block_marks import OUTPUT, stacks
from iblip.export.components.language_model import tensors_from_cache
from iblip.export.examples import Example
from iblip.export.progress import Advance
from iblip.export.verification.reference import Reference, batches

Array = npt.NDArray[Any]

PROMPT = "What is in the image?"
"""The question about random images, if a checkpoint has no examples."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The reference's tensors for one example. Every array has a batch of 1 as its first axis.

    Attributes:
        name: of the example.
        image: of the example.
        prompt: question about the image.
        tensors: by the names of the contracts: `image_embeds`, `visual_prompt`, `inputs_embeds`
            (of LLaMA and OPT the prompt's, of T5 the encoder's), `logits` `[1, vocab]` of the first
            token; `qformer_input_ids` and `qformer_attention_mask` if an instruction is read;
            of T5 `decoder_ids` `[1, 1]`, `decoder_embeds` `[1, 1, hidden]` and
            `cross_key_values.*`.
        blocks: the residual stream after each block, `[1, positions, width]`, by the block's path
            and `.output`, in the order in which they ran.
    """

    name: str
    image: Image.Image
    prompt: str
    tensors: Mapping[str, Array]
    blocks: Mapping[str, Array]


def choose_images(
    examples: Sequence[Example], side: int, count: int
) -> list[tuple[str, Image.Image, str]]:
    """Returns names, images and prompts to record: of examples spread over all, or random ones.

    Args:
        examples: to choose from; images are random if there are none.
        side: of a random image, in pixels.
        count: largest number to return.
    """
    if not examples:
        random = np.random.default_rng(0)
        noise = [random.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]
        return [(f"noise-{i}", Image.fromarray(noise[i]), PROMPT) for i in range(count)]
    at = np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int)
    chosen = [examples[index] for index in at]
    return [(e.name, _open_image(e.image), e.prompt) for e in chosen]


def _open_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def record(
    reference: Reference, examples: Sequence[tuple[str, Image.Image, str]], advance: Advance
) -> list[Recording]:
    """Runs the reference on each image and prompt, those of equal lengths in one batch.

    Args:
        reference: that is run.
        examples: names, images and prompts, as from `choose_images`.
        advance: called with 1 for each.
    """
    recordings: dict[int, Recording] = {}
    for batch in batches(reference, [prompt for _, _, prompt in examples]):
        with _kept_tensors(reference) as kept:
            images = [examples[index][1] for index in batch]
            logits = reference.first_logits(images, [examples[index][2] for index in batch])
        kept["logits"] = logits
        for row, index in enumerate(batch):
            tensors = {name: _row(tensor, row) for name, tensor in kept.items()}
            recordings[index] = _recording(*examples[index], tensors)
            advance(1)
    return [recordings[index] for index in range(len(examples))]


def _recording(name: str, image: Image.Image, prompt: str, kept: dict[str, Array]) -> Recording:
    return Recording(
        name=name,
        image=image,
        prompt=prompt,
        tensors={key: array for key, array in kept.items() if not key.endswith(OUTPUT)},
        blocks={key: array for key, array in kept.items() if key.endswith(OUTPUT)},
    )


def _row(tensor: torch.Tensor, row: int) -> Array:
    array: Array = tensor[row : row + 1].detach().cpu().numpy()
    return array.copy()


@contextmanager
def _kept_tensors(reference: Reference) -> Iterator[dict[str, torch.Tensor]]:
    """Yields a dictionary that collects the first tensor of each name inside the reference."""
    kept: dict[str, torch.Tensor] = {}
    parts, language = reference.parts, reference.language_model
    with ExitStack() as hooks:

        def after(module: Any, take: Callable[..., Mapping[str, torch.Tensor]]) -> None:
            def hook(_: Any, __: Any, given: Mapping[str, Any], output: Any) -> None:
                for name, tensor in take(output, **given).items():
                    kept.setdefault(name, tensor)

            hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)

        for prefix, part in parts.items():
            for path, stack in stacks(part, prefix):
                for index, block in enumerate(stack):
                    after(block, _named(f"{path}.{index}{OUTPUT}"))
        after(parts["vision_model"], lambda out, **_: {"image_embeds": out.last_hidden_state})
        after(parts["language_projection"], _named("visual_prompt"))
        if "qformer" in parts:
            after(parts["qformer"], _instruction)
        if language.config.is_encoder_decoder:
            after(language.encoder, lambda _, **given: {"inputs_embeds": given["inputs_embeds"]})
            after(language.decoder, _decoder_embeds(language))
            after(language, _cross)
        else:
            after(language, lambda _, **given: {"inputs_embeds": given["inputs_embeds"]})
        yield kept


def _named(name: str) -> Callable[..., Mapping[str, torch.Tensor]]:
    return lambda out, **_: {name: out[0] if isinstance(out, tuple) else out}


def _instruction(_: Any, **given: Any) -> Mapping[str, torch.Tensor]:
    ids = given.get("input_ids")
    if ids is None:
        return {}
    mask = given["attention_mask"][:, -ids.shape[1] :]  # behind that of the queries
    return {"qformer_input_ids": ids, "qformer_attention_mask": mask}


def _decoder_embeds(language: Any) -> Callable[..., Mapping[str, torch.Tensor]]:
    embed = language.get_input_embeddings()
    return lambda _, **given: {
        "decoder_ids": given["input_ids"],
        "decoder_embeds": embed(given["input_ids"]),
    }


def _cross(out: Any, **_: Any) -> Mapping[str, torch.Tensor]:
    tensors = tensors_from_cache(out.past_key_values.cross_attention_cache)
    kinds = ("key", "value")
    return {f"cross_key_values.{i // 2}.{kinds[i % 2]}": t for i, t in enumerate(tensors)}
