"""`Reference`: a checkpoint as transformers runs it, in float32. What every build is held against.

Where transformers has the model it is read by transformers itself, so that nothing of this project
stands between the files and the answers. The parts of a model that it does not have, and the
weights of originals' files, are filled from the checkpoint's tensors.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

import numpy as np
import torch

from export.checkpoint import Checkpoint
from export.errors import CheckpointError
from export.text import language_model_facts

PLAIN: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "early_stopping": False,
}
"""What is asked for unless the caller says otherwise, whatever a generation config has."""

BATCH = 32
"""Examples of one length that are answered at once."""

FIRST: Mapping[str, Any] = {"max_new_tokens": 1, "output_logits": True}
"""Asks `generate` for the scores of the first token, before anything is done to them."""


@dataclass(frozen=True, kw_only=True)
class ReferenceAnswer:
    """One answer.

    Attributes:
        text: before any stop string.
        token_ids: without the token that ended it.
        score: of a beam search whose scores were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    score: float | None


class Reference(Protocol):
    """A model in transformers.

    Attributes:
        language_model: transformers' own module.
        parts: transformers' modules by the checkpoint's names for them: `vision_model`, `qformer`
            (where there is one), `language_projection`, `language_model`.
    """

    language_model: Any
    parts: Mapping[str, Any]

    def features(self, pixels: torch.Tensor, **text: torch.Tensor) -> tuple[Any, Any]:
        """`image_embeds` and `visual_prompt` of `pixels`, float32 `[batch, 3, height, width]`.

        `text` is `qformer_input_ids` and `qformer_attention_mask`, where the Q-Former reads them.
        """
        ...

    def lengths(self, prompt: str) -> tuple[int, ...]:
        """How many tokens `prompt` has, by tokenizer and piece. Prompts of one batch have the same:
        padding, which transformers would put on the left, changes its answers."""
        ...

    def generate(
        self, images: Sequence[Any], prompts: Sequence[str], **options: Any
    ) -> list[ReferenceAnswer]:
        """Answers of one batch, an image (Pillow's) a prompt.

        `options` are those of transformers' `generate`; `PLAIN` holds where they are silent.
        """
        ...

    def first_logits(self, images: Sequence[Any], prompts: Sequence[str]) -> torch.Tensor:
        """Float32 `[batch, vocab]` of the first token of each answer, as of one batch."""
        ...


def reference_of(
    checkpoint: Checkpoint, positions: int | None = None, *, streamed: bool = False
) -> Reference:
    """transformers' own model of `checkpoint`, or what its modules make.

    Args:
        checkpoint: of any family.
        positions: that prompt and answer may have together, of an encoder-decoder the answer
            alone; `None` is what the model has. transformers itself would go beyond them.
        streamed: weights are read as they are wanted; see `export.verification.streamed`.
    """
    if not streamed:
        kind = AssembledReference if checkpoint.family.processor is None else WholeReference
        return kind(checkpoint, positions)
    from export.verification.streamed import streamed_model, streamed_part

    if checkpoint.family.processor is None:
        return AssembledReference(checkpoint, positions, make=streamed_part)
    return WholeReference(checkpoint, positions, model=streamed_model(checkpoint))


def answers(
    reference: Reference, images: Sequence[Any], prompts: Sequence[str], **options: Any
) -> Iterator[tuple[list[int], list[ReferenceAnswer]]]:
    """Answers to prompts of any lengths, batch by batch, each with its indices.

    Args:
        reference: what is asked.
        images: files, one a prompt.
        prompts: what is asked of it.
        options: as in `Reference.generate`.
    """
    from PIL import Image

    for batch in batches(reference, prompts):
        opened = [Image.open(images[index]) for index in batch]
        asked = [prompts[index] for index in batch]
        yield batch, reference.generate(opened, asked, **options)


def batches(reference: Reference, prompts: Sequence[str]) -> Iterator[list[int]]:
    """Indices of prompts that may be one batch: of the same lengths, and at most `BATCH`."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        groups[reference.lengths(prompt)].append(index)
    for indices in groups.values():
        for start in range(0, len(indices), BATCH):
            yield indices[start : start + BATCH]


Make = Callable[[Callable[[], Any], Mapping[str, Any], str], Any]
"""Makes a module with the tensors whose names begin with a prefix."""


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
        found = self.model.get_image_features(
            pixel_values=pixels, interpolate_pos_encoding=True, **text
        )
        return found.vision_outputs.last_hidden_state, found.pooler_output

    def lengths(self, prompt: str) -> tuple[int, ...]:
        """See `Reference`."""
        text = self._processor(text=prompt)
        return tuple(len(text[name][0]) for name in text if name.endswith("input_ids"))

    @torch.no_grad()
    def generate(
        self, images: Sequence[Any], prompts: Sequence[str], **options: Any
    ) -> list[ReferenceAnswer]:
        """See `Reference`."""
        made, used = self._generated(images, prompts, options)
        return self._ends.answers(made, before=used or 1)

    @torch.no_grad()
    def first_logits(self, images: Sequence[Any], prompts: Sequence[str]) -> torch.Tensor:
        """See `Reference`."""
        return _first_logits(self._generated(images, prompts, FIRST)[0])

    def _generated(
        self, images: Sequence[Any], prompts: Sequence[str], options: Mapping[str, Any]
    ) -> tuple[Any, int]:
        """What `generate` returns, and the positions before the answer; 0 of T5's."""
        inputs = self._processor(images=list(images), text=list(prompts), return_tensors="pt")
        decoder_only = not self.language_model.config.is_encoder_decoder
        used = inputs["input_ids"].shape[1] if decoder_only else 0
        made = self.model.generate(
            **inputs, interpolate_pos_encoding=True, **self._ends.options(options, used)
        )
        return made, used


class AssembledReference:
    """A model that transformers has the modules of: ViT, Q-Former, language model. See `Reference`.

    Args:
        checkpoint: of a family without a processor.
        positions: as in `reference_of`.
        make: gives a module its weights.
    """

    def __init__(
        self, checkpoint: Checkpoint, positions: int | None = None, *, make: Make | None = None
    ) -> None:
        from transformers import AutoModelForCausalLM, Blip2QFormerModel, Blip2VisionModel

        config, tensors = checkpoint.config, checkpoint.tensors
        language: Any = AutoModelForCausalLM
        text, vision = fresh(config.text_config), fresh(config.vision_config)
        make = make or _filled
        self.language_model = make(lambda: language.from_config(text), tensors, "language_model.")
        self._vision = make(lambda: Blip2VisionModel(vision), tensors, "vision_model.")
        rows, columns = tensors["language_projection.weight"].shape
        self._projection = make(
            lambda: torch.nn.Linear(columns, rows), tensors, "language_projection."
        )
        self._qformer: Any = None
        if config.qformer_config is not None:
            qformer = fresh(config.qformer_config)
            self._qformer = make(lambda: Blip2QFormerModel(qformer), tensors, "qformer.")
            self._queries = tensor_from_weight(tensors["query_tokens"])
        parts = {
            "vision_model": self._vision,
            "qformer": self._qformer,
            "language_projection": self._projection,
            "language_model": self.language_model,
        }
        self.parts: Mapping[str, Any] = {
            name: part for name, part in parts.items() if part is not None
        }
        self._merged = config.merged_patches
        self._template = checkpoint.prompt_template
        self._processor, self._ends = checkpoint.processor, _Ends(checkpoint, positions)

    @torch.no_grad()
    def features(self, pixels: torch.Tensor, **text: torch.Tensor) -> tuple[Any, Any]:
        """See `Reference`."""
        image_embeds = self._vision(pixels).last_hidden_state
        if self._qformer is None:
            patches = image_embeds[:, 1:]
            batch, count, width = patches.shape
            hidden = patches.reshape(batch, count // self._merged, self._merged * width)
        else:
            queries = self._queries.expand(len(pixels), -1, -1)
            hidden = self._qformer(
                query_embeds=queries, encoder_hidden_states=image_embeds
            ).last_hidden_state
        return image_embeds, self._projection(hidden)

    def lengths(self, prompt: str) -> tuple[int, ...]:
        """See `Reference`."""
        return tuple(len(piece) for piece in self._pieces(prompt))

    @torch.no_grad()
    def generate(
        self, images: Sequence[Any], prompts: Sequence[str], **options: Any
    ) -> list[ReferenceAnswer]:
        """See `Reference`."""
        return self._ends.answers(self._generated(images, prompts, options), before=0)

    @torch.no_grad()
    def first_logits(self, images: Sequence[Any], prompts: Sequence[str]) -> torch.Tensor:
        """See `Reference`."""
        return _first_logits(self._generated(images, prompts, FIRST))

    def _generated(
        self, images: Sequence[Any], prompts: Sequence[str], options: Mapping[str, Any]
    ) -> Any:
        """What `generate` returns."""
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
        """Ids before and behind the image. The first that is not empty has the special tokens."""
        tokenizer = self._processor.tokenizer
        before, behind = (
            piece.replace("{prompt}", prompt) for piece in self._template.split("{image}")
        )
        first = tokenizer(before).input_ids if before else []
        return first, tokenizer(behind, add_special_tokens=not before).input_ids


class _Ends:
    """What ends an answer of `checkpoint`, before `generate` and behind it."""

    def __init__(self, checkpoint: Checkpoint, positions: int | None) -> None:
        facts = language_model_facts(checkpoint)
        self._positions, self._limit = positions or facts.max_length, facts.default_max_new_tokens
        self._ids, self._start = facts.eos_token_ids, facts.decoder_start_token_id
        self._stop = checkpoint.stop
        self._tokenizer: Any = checkpoint.processor.tokenizer

    def options(self, options: Mapping[str, Any], used: int) -> dict[str, Any]:
        """For transformers' `generate`, behind a prompt of `used` positions."""
        limit = options.get("max_new_tokens") or self._limit
        made = {
            **PLAIN,
            "eos_token_id": list(self._ids),
            "pad_token_id": self._ids[0],  # behind an answer that a stop string ended, too
            "return_dict_in_generate": True,
        }
        if self._start is not None:  # T5's, which a config may leave to the generation config
            made["decoder_start_token_id"] = self._start
        if self._stop:
            made |= {"stop_strings": list(self._stop), "tokenizer": self._tokenizer}
        return {**made, **options, "max_new_tokens": min(limit, self._positions - used)}

    def answers(self, made: Any, *, before: int) -> list[ReferenceAnswer]:
        """What `generate` returned; answers begin at position `before`."""
        rows = made.sequences[:, before:].tolist()
        found = getattr(made, "sequences_scores", None)
        scores = [None] * len(rows) if found is None else found.tolist()
        return [self._answer(row, score) for row, score in zip(rows, scores, strict=True)]

    def _answer(self, row: list[int], score: float | None) -> ReferenceAnswer:
        # BLIP-2's end on OPT is a line break, which is no special token.
        ids = tuple(takewhile(lambda token: token not in self._ids, row))
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        ends = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        return ReferenceAnswer(text=text[: min(ends, default=None)], token_ids=ids, score=score)


def _first_logits(made: Any) -> torch.Tensor:
    logits: torch.Tensor = made.logits[0]
    return logits.to(torch.float32)


def load_model(checkpoint: Checkpoint) -> Any:
    """transformers' own model of `checkpoint`, in float32.

    Read by transformers where the checkpoint is in its form, and else filled from the tensors.
    """
    import transformers

    kind = getattr(transformers, checkpoint.family.architecture)
    config = json.loads((checkpoint.directory / "config.json").read_text(encoding="utf-8"))
    if checkpoint.family.architecture not in config.get("architectures", ()):
        # Only a part of it lies there: an original's language model.
        return filled(kind(fresh(checkpoint.config)), checkpoint.tensors, "")
    model: Any = kind.from_pretrained(
        checkpoint.directory, dtype=torch.float32, local_files_only=True
    )
    return model.eval()


def filled(module: Any, tensors: Mapping[str, Any], prefix: str) -> Any:
    """`module` in float32, with the tensors whose names begin with `prefix`.

    Tied weights stay tied where only one of the two is there.

    Raises:
        CheckpointError: the module has a weight that is not there.
    """
    state = {
        name.removeprefix(prefix): tensor_from_weight(tensor)
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    module = module.float().eval()
    tied = tied_names(module)
    for target, source in tied.items():
        if {target, source} <= state.keys():
            parent, _, name = target.rpartition(".")
            setattr(module.get_submodule(parent), name, torch.nn.Parameter(state[target]))
    missing = set(module.load_state_dict(state, strict=False).missing_keys) - tied.keys()
    if missing:
        raise CheckpointError(f"the checkpoint has no {prefix}{min(missing)}")
    return module


def _filled(make: Callable[[], Any], tensors: Mapping[str, Any], prefix: str) -> Any:
    return filled(make(), tensors, prefix)


def fresh(config: Any) -> Any:
    """A copy with nothing of what the exporter sets in a config: its own attention."""
    return type(config).from_dict(config.to_dict())


def tied_names(module: Any) -> dict[str, str]:
    """For each weight that the config ties to another, that other's name."""
    if not hasattr(module, "get_expanded_tied_weights_keys"):
        return {}
    tied: dict[str, str] = module.get_expanded_tied_weights_keys(all_submodels=True)
    return tied


def tensor_from_weight(tensor: Any) -> torch.Tensor:
    """A tensor of a checkpoint in float32, in memory of its own."""
    values = np.asarray(tensor.read()).astype(np.float32)
    return torch.from_numpy(values).clone()
