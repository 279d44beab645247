"""The two kinds of `Reference`: a model of transformers, and one assembled from its modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch

from iblip.export.adapters.adapted import Adapted
from iblip.export.byte_runs import decode
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.checkpoint.facts import language_model_facts
from iblip.export.verification.adapting import with_adapters
from iblip.export.verification.loading import copy_config, fill, load_model, tensor_from_weight
from iblip.export.verification.reference import FIRST, PLAIN, Reference, ReferenceAnswer


def reference_of(
    checkpoint: Checkpoint, positions: int | None = None, *, streamed: bool = False
) -> Reference:
    """Returns transformers' own model of `checkpoint`, or one assembled from its modules.

    Args:
        checkpoint: of any family.
        positions: largest length of prompt and answer together, or of an encoder-decoder's answer
            alone; `None` is the model's own. transformers itself would exceed it.
        streamed: whether weights are read when they are used (`export.verification.streamed`).
    """
    if not streamed:
        kind = AssembledReference if checkpoint.family.processor is None else WholeReference
        return kind(checkpoint, positions)
    from iblip.export.verification.streamed import streamed_model, streamed_part

    if checkpoint.family.processor is None:
        return AssembledReference(checkpoint, positions, make=streamed_part)
    return WholeReference(checkpoint, positions, model=streamed_model(checkpoint))


Make = Callable[[Callable[[], Any], Mapping[str, Any], str], Any]
"""Constructs a module, and fills it with the tensors whose names begin with a prefix."""


class WholeReference:
    """A model that transformers has. See `Reference`.

    Args:
        checkpoint: of such a family.
        positions: as in `reference_of`.
        model: transformers' model of it; `None` loads it.
    """

    def __init__(
        self, checkpoint: Checkpoint, positions: int | None = None, *, model: Any = None
    ) -> None:
        self.model = load_model(checkpoint) if model is None else model
        self.parts: Mapping[str, Any] = dict(self.model.named_children())
        self.language_model = self.model.language_model
        self._processor, self._ends = checkpoint.processor, _Ends(checkpoint, positions)

    @torch.no_grad()
    def features(self, pixels: torch.Tensor, **text: torch.Tensor) -> tuple[Any, Any]:
        """See `Reference`."""
        features = self.model.get_image_features(
            pixel_values=pixels, interpolate_pos_encoding=True, **text
        )
        return features.vision_outputs.last_hidden_state, features.pooler_output

    def lengths(self, prompt: str) -> tuple[int, ...]:
        """See `Reference`."""
        text = self._processor(text=prompt)
        return tuple(len(text[name][0]) for name in text if name.endswith("input_ids"))

    @torch.no_grad()
    def generate(
        self, images: Sequence[Any], prompts: Sequence[str], **options: Any
    ) -> list[ReferenceAnswer]:
        """See `Reference`."""
        output, used = self._generate(images, prompts, options)
        return self._ends.answers(output, before=used or 1)

    @torch.no_grad()
    def first_logits(self, images: Sequence[Any], prompts: Sequence[str]) -> torch.Tensor:
        """See `Reference`."""
        return _first_logits(self._generate(images, prompts, FIRST)[0])

    def _generate(
        self, images: Sequence[Any], prompts: Sequence[str], options: Mapping[str, Any]
    ) -> tuple[Any, int]:
        """Returns transformers' output, and the number of positions before the answer (T5: 0)."""
        inputs = self._processor(images=list(images), text=list(prompts), return_tensors="pt")
        decoder_only = not self.language_model.config.is_encoder_decoder
        used = inputs["input_ids"].shape[1] if decoder_only else 0
        output = self.model.generate(
            **inputs, interpolate_pos_encoding=True, **self._ends.options(options, used)
        )
        return output, used


class AssembledReference:
    """A model assembled from transformers' ViT, Q-Former and language model. See `Reference`.

    Args:
        checkpoint: of a family without a processor.
        positions: as in `reference_of`.
        make: constructs modules with their weights; `None` fills them from the checkpoint.
    """

    def __init__(
        self, checkpoint: Checkpoint, positions: int | None = None, *, make: Make | None = None
    ) -> None:
        from transformers import AutoModelForCausalLM, Blip2QFormerModel, Blip2VisionModel

        # What streams weights reads them with adapters merged into them; else peft adds these.
        adapted = checkpoint if isinstance(checkpoint, Adapted) and make is None else None
        own = checkpoint if adapted is None else adapted.base
        config, tensors = own.config, own.tensors
        language: Any = AutoModelForCausalLM
        text, vision = copy_config(config.text_config), copy_config(config.vision_config)
        rows, columns = tensors["language_projection.weight"].shape
        kinds: dict[str, Callable[[], Any]] = {
            "vision_model": lambda: Blip2VisionModel(vision),
            "language_projection": lambda: torch.nn.Linear(columns, rows),
            "language_model": lambda: language.from_config(text),
        }
        if config.qformer_config is not None:
            qformer = copy_config(config.qformer_config)
            kinds["qformer"] = lambda: Blip2QFormerModel(qformer)
            self._queries = tensor_from_weight(tensors["query_tokens"])
        whole = torch.nn.Module()
        for name, kind in kinds.items():
            whole.add_module(name, (make or _fill)(kind, tensors, f"{name}."))
        if adapted is not None:
            whole = with_adapters(whole, adapted)
        self.parts: Mapping[str, Any] = dict(whole.named_children())
        self.language_model = self.parts["language_model"]
        self._merged = config.merged_patches
        self._template = checkpoint.prompt_template
        self._processor, self._ends = checkpoint.processor, _Ends(checkpoint, positions)

    @torch.no_grad()
    def features(self, pixels: torch.Tensor, **text: torch.Tensor) -> tuple[Any, Any]:
        """See `Reference`."""
        image_embeds = self.parts["vision_model"](pixels).last_hidden_state
        if "qformer" not in self.parts:
            patches = image_embeds[:, 1:]
            batch, count, width = patches.shape
            hidden = patches.reshape(batch, count // self._merged, self._merged * width)
        else:
            queries = self._queries.expand(len(pixels), -1, -1)
            hidden = self.parts["qformer"](
                query_embeds=queries, encoder_hidden_states=image_embeds
            ).last_hidden_state
        return image_embeds, self.parts["language_projection"](hidden)

    def lengths(self, prompt: str) -> tuple[int, ...]:
        """See `Reference`."""
        return tuple(len(piece) for piece in self._pieces(prompt))

    @torch.no_grad()
    def generate(
        self, images: Sequence[Any], prompts: Sequence[str], **options: Any
    ) -> list[ReferenceAnswer]:
        """See `Reference`."""
        return self._ends.answers(self._generate(images, prompts, options), before=0)

    @torch.no_grad()
    def first_logits(self, images: Sequence[Any], prompts: Sequence[str]) -> torch.Tensor:
        """See `Reference`."""
        return _first_logits(self._generate(images, prompts, FIRST))

    def _generate(
        self, images: Sequence[Any], prompts: Sequence[str], options: Mapping[str, Any]
    ) -> Any:
        """Returns transformers' output."""
        pixels = self._processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        _, visual_prompt = self.features(pixels)
        rows = [self._pieces(prompt) for prompt in prompts]
        embed = self.language_model.get_input_embeddings()
        before, behind = (
            embed(torch.tensor([row[piece] for row in rows], dtype=torch.int64)) for piece in (0, 1)
        )
        embeds = torch.cat([before, visual_prompt, behind], dim=1)
        return self.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            **self._ends.options(options, embeds.shape[1]),
        )

    def _pieces(self, prompt: str) -> tuple[list[int], list[int]]:
        """Returns the ids before and behind the image; the first non-empty has special tokens."""
        tokenizer = self._processor.tokenizer
        before, behind = (
            piece.replace("{prompt}", prompt) for piece in self._template.split("{image}")
        )
        first = tokenizer(before).input_ids if before else []
        return first, tokenizer(behind, add_special_tokens=not before).input_ids


class _Ends:
    """Ends answers of `checkpoint`: by options of `generate`, and by cutting its output."""

    def __init__(self, checkpoint: Checkpoint, positions: int | None) -> None:
        facts = language_model_facts(checkpoint)
        self._positions, self._limit = positions or facts.max_length, facts.default_max_new_tokens
        self._ids, self._start = facts.eos_token_ids, facts.decoder_start_token_id
        self._stop = checkpoint.stop
        self._tokenizer: Any = checkpoint.processor.tokenizer
        self._bytes_apart = facts.bytes_apart

    def options(self, options: Mapping[str, Any], used: int) -> dict[str, Any]:
        """Returns the options of transformers' `generate` after a prompt of `used` positions."""
        limit = options.get("max_new_tokens") or self._limit
        defaults = {
            **PLAIN,
            "eos_token_id": list(self._ids),
            "pad_token_id": self._ids[0],  # also after an answer that a stop string ended
            "return_dict_in_generate": True,
        }
        if self._start is not None:  # T5's, which a config may leave to the generation config
            defaults["decoder_start_token_id"] = self._start
        if self._stop:
            defaults |= {"stop_strings": list(self._stop), "tokenizer": self._tokenizer}
        return {**defaults, **options, "max_new_tokens": min(limit, self._positions - used)}

    def answers(self, output: Any, *, before: int) -> list[ReferenceAnswer]:
        """Returns the answers in transformers' `output`, which begin at position `before`."""
        rows = output.sequences[:, before:].tolist()
        sequences_scores = getattr(output, "sequences_scores", None)
        scores = [None] * len(rows) if sequences_scores is None else sequences_scores.tolist()
        return [self._answer(row, score) for row, score in zip(rows, scores, strict=True)]

    def _answer(self, row: list[int], score: float | None) -> ReferenceAnswer:
        # BLIP-2's end on OPT is a line break, which is no special token.
        ids = tuple(takewhile(lambda token: token not in self._ids, row))
        text = self._decode(ids)
        ends = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        return ReferenceAnswer(text=text[: min(ends, default=None)], token_ids=ids, score=score)

    def _decode(self, ids: Sequence[int]) -> str:
        if not self._bytes_apart:
            return str(self._tokenizer.decode(ids, skip_special_tokens=True))
        shown = [token for token in ids if token not in self._tokenizer.all_special_ids]
        return decode(self._tokenizer.backend_tokenizer, shown, bytes_apart=True)


def _first_logits(output: Any) -> torch.Tensor:
    logits: torch.Tensor = output.logits[0]
    return logits.to(torch.float32)


def _fill(make: Callable[[], Any], tensors: Mapping[str, Any], prefix: str) -> Any:
    return fill(make(), tensors, prefix)
