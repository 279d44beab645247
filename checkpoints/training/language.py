"""Stage 3: the language model, on text alone.

It reads a scene in words and a question, and learns to answer: all the language there will be, and
where in a description an answer is found. No picture takes part.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from .batches import IGNORED, Encoder, TextBatch
from .corpus import as_text, random_questions
from .loop import Schedule, fit

SCHEDULE = Schedule(steps=1000, batch=64, peak=2e-3, weight_decay=0.02)


def answer_logits(
    model: PreTrainedModel, batch: TextBatch, visual_prompt: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run a language model on a batch, teacher-forced.

    Args:
        model: LLaMA or T5.
        batch: prompts and answers.
        visual_prompt: float32 `[batch, queries, width]`, put before the prompt.

    Returns:
        Logits float32 `[n, vocabulary]` and wanted ids int64 `[n]`, at the answers' `n` tokens.
    """
    embeds, mask = model.get_input_embeddings()(batch.ids), batch.mask
    labels = batch.labels
    if visual_prompt is not None:
        embeds = torch.cat([visual_prompt, embeds], dim=1)
        mask = torch.cat([mask.new_ones(visual_prompt.shape[:2]), mask], dim=1)
    if model.config.is_encoder_decoder:
        logits = model(inputs_embeds=embeds, attention_mask=mask, labels=labels).logits
    else:
        hidden = model.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)[0]
        hidden = hidden[:, -batch.ids.shape[1] :]
        hidden, labels = hidden[:, :-1], labels[:, 1:]  # a decoder foretells the next token
        scored = labels != IGNORED
        return model.lm_head(hidden[scored]), labels[scored]
    scored = labels != IGNORED
    return logits[scored], labels[scored]


def exact_matches(logits: Tensor, wanted: Tensor, labels: Tensor) -> Tensor:
    """Which answers of a batch are right in every token: bool `[batch]`.

    With greedy decoding this is the same as an exact match of the generated text.
    """
    owner = (labels != IGNORED).nonzero()[:, 0]
    wrong = torch.zeros(len(labels))
    wrong.index_add_(0, owner, (logits.argmax(-1) != wanted).float())
    return wrong == 0


def train_language(
    model: PreTrainedModel, encoder: Encoder, schedule: Schedule = SCHEDULE
) -> float:
    """Train a language model in place; returns seconds."""
    training, validation = text_batches(encoder, schedule.batch, 1), text_batches(encoder, 500, 2)
    held = next(validation)

    def loss_of(step: int) -> Tensor:
        logits, wanted = answer_logits(model, next(training))
        return functional.cross_entropy(logits, wanted)

    @torch.no_grad()
    def report() -> str:
        logits, wanted = answer_logits(model, held)
        return f"exact {exact_matches(logits, wanted, held.labels).float().mean().item():.4f}"

    return fit("language", [model], loss_of, schedule, report)


def text_batches(encoder: Encoder, size: int, seed: int) -> Iterator[TextBatch]:
    """Scenes in words, each with a question; endless."""
    questions = random_questions(seed)
    while True:
        pairs = list(islice(questions, size))
        prompts = [f"{as_text(scene)} {question.prompt}" for scene, question in pairs]
        yield encoder.text(prompts, [question.answer for _, question in pairs])
