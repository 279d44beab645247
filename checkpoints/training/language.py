"""Stage 3: the language model, on text alone.

It reads a scene in words and a question, and learns to answer: all the language there will be, and
where in a description an answer is found. No image takes part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from .batches import IGNORED, Encoder, TextBatch
from .corpus import as_text, random_questions
from .loop import Schedule, fit

SCHEDULE = Schedule(steps=1000, batch=64, peak=2e-3, weight_decay=0.02)


@dataclass(frozen=True)
class Answers:
    """What a language model made of a batch, teacher-forced, at the answers' `n` tokens.

    Attributes:
        logits: float32 `[n, vocabulary]`.
        targets: ids, int64 `[n]`.
        rows: whose answer each token is of, int64 `[n]`.
        first: the state that says each answer's first token, float32 `[batch, width]`.
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor
    first: Tensor

    def matches(self) -> Tensor:
        """Which answers are right in every token: bool `[batch]`.

        With greedy decoding this is the same as an exact match of the generated text.
        """
        wrong = torch.zeros(len(self.first))
        wrong.index_add_(0, self.rows, (self.logits.argmax(-1) != self.targets).float())
        return wrong == 0


def answers(
    model: PreTrainedModel, batch: TextBatch, visual_prompt: Tensor | None = None
) -> Answers:
    """Run a language model on a batch, teacher-forced.

    Args:
        model: LLaMA, OPT or T5.
        batch: prompts and answers.
        visual_prompt: float32 `[batch, queries, width]`, put before the prompt.
    """
    embedding = model.get_input_embeddings()
    embeds, mask, labels = embedding(batch.ids), batch.mask, batch.labels
    if visual_prompt is not None:
        before = embedding(batch.before).expand(len(embeds), -1, -1)
        embeds = torch.cat([before, visual_prompt, embeds], dim=1)
        ahead = embeds.shape[1] - mask.shape[1]
        mask = torch.cat([mask.new_ones(len(mask), ahead), mask], dim=1)
    if model.config.is_encoder_decoder:
        hidden = model(
            inputs_embeds=embeds, attention_mask=mask, labels=labels, output_hidden_states=True
        ).decoder_hidden_states[-1]
    else:  # padding is on the right, where no earlier token looks: it needs no mask
        hidden = model.base_model(inputs_embeds=embeds, use_cache=False)[0]
        hidden = hidden[:, -batch.ids.shape[1] :]
        hidden, labels = hidden[:, :-1], labels[:, 1:]  # a decoder foretells the next token
    scored = labels != IGNORED
    first = hidden[torch.arange(len(labels)), scored.int().argmax(dim=1)]
    logits = model.lm_head(hidden[scored])
    return Answers(logits, labels[scored], scored.nonzero()[:, 0], first)


def train_language(
    model: PreTrainedModel, encoder: Encoder, schedule: Schedule = SCHEDULE
) -> float:
    """Train a language model in place; returns seconds."""
    training, validation = text_batches(encoder, schedule.batch, 1), text_batches(encoder, 500, 2)
    held = next(validation)

    def loss_of(step: int) -> Tensor:
        said = answers(model, next(training))
        return functional.cross_entropy(said.logits, said.targets)

    @torch.no_grad()
    def report() -> str:
        return f"exact {answers(model, held).matches().float().mean().item():.4f}"

    return fit("language", [model], loss_of, schedule, report)


def text_batches(encoder: Encoder, size: int, seed: int) -> Iterator[TextBatch]:
    """Scenes in words, each with a question; endless."""
    questions = random_questions(seed)
    while True:
        pairs = list(islice(questions, size))
        asked = [encoder.form.put(question).prompt for _, question in pairs]
        prompts = [
            f"{as_text(scene)} {prompt}" for (scene, _), prompt in zip(pairs, asked, strict=True)
        ]
        yield encoder.text(prompts, [question.answer for _, question in pairs])
