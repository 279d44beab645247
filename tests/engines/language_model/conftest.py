"""A model that says what a test wrote, one byte a token, and an engine around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from iblip.engines.language_model.onnx.engine import OnnxEngine
from iblip.engines.language_model.onnx.slots import Prompt, Slot
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import GenerationRequest, Priority
from iblip.engines.language_model.waiting import BULK_PATIENCE_S
from iblip.engines.text.prompts import PromptTokenizer
from iblip.engines.types import PromptIds
from iblip.export.artifact.manifest import LanguageModelFacts

EOS, BOS, IMAGE, VOCAB = 256, 257, 258, 260


def _byte_letters() -> list[str]:
    """The letter that the ByteLevel decoder reads as each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain}
    letters |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """Token n is byte n; 256 ends, 257 begins, 258 is the image."""
    vocab = {letter: byte for byte, letter in enumerate(_byte_letters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(name, special=True) for name in ("</s>", "<s>", "<image>")]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


class ScriptedModel:
    """Answers every prompt with `script`, bytes and then the end, again and again.

    Attributes:
        capacity: how many sequences it holds.
        gate: where given, every step waits for one permit.
        prompts: what was read, in order.
        begun: how many steps were begun.
        steps: how many steps were run.
        batches: how many sequences each step had.
        pieces: how many positions each prefill read, with the number of steps before it.
        live: slots in use.
        second: the token that is second in every row of logits.
        error: raised by the next step.
    """

    start_token = None
    piece = 64
    prompts_at_once = 1

    def __init__(
        self, script: str | bytes = "It is red.", *, capacity: int = 1, positions: int = 10_000
    ) -> None:
        self.script = script.encode() if isinstance(script, str) else script
        self.capacity, self.positions = capacity, positions
        self.gate: threading.Semaphore | None = None
        self.prompts: list[str] = []
        self.begun = self.steps = 0
        self.batches: list[int] = []
        self.pieces: list[tuple[int, int]] = []
        self.live: list[Slot] = []
        self.second = ord("~")
        self.error: BaseException | None = None
        self.closed = self.warm = False
        self.stepped = threading.Condition()

    def acquire(self) -> Slot:
        assert len(self.live) < self.capacity
        self.live.append(Slot(row=len(self.live)))
        return self.live[-1]

    def release(self, slot: Slot, *, keep: bool = False) -> None:
        self.live.remove(slot)

    def reuse(self, slot: Slot, prompt: Prompt) -> int:
        return 0

    def fork(self, targets: Mapping[Slot, Slot]) -> None:
        for target, source in targets.items():
            target.length, target.tokens = source.length, source.tokens.copy()

    def warm_up(self) -> None:
        self.warm = True

    def read(self, visual_prompt: Any, prompt: PromptIds) -> Prompt:
        self.prompts.append(bytes(i for i in prompt.ids if i < 256).decode())
        positions = prompt.positions(visual_prompt.shape[1])
        return Prompt(np.zeros((1, positions, 1), np.float32))

    def prefill(self, prompts: Mapping[Slot, Prompt], limit: int) -> Any:
        slot, prompt = next(iter(prompts.items()))
        count = min(limit, prompt.positions - prompt.done)
        self.pieces.append((count, self.steps))
        prompt.done += count
        return {slot: self._logits(slot) if prompt.done == prompt.positions else None}

    def step(self, tokens: Mapping[Slot, int]) -> Any:
        with self.stepped:
            self.begun += 1
            self.stepped.notify_all()
        if self.gate is not None:
            assert self.gate.acquire(timeout=60)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        for slot in tokens:
            slot.length += 1
        self.batches.append(len(tokens))
        with self.stepped:
            self.steps += 1
            self.stepped.notify_all()
        return np.stack([self._logits(slot) for slot in tokens])

    def wait_for_steps(self, count: int) -> None:
        """Until so many were run and the next waits at the gate: what comes now comes after it."""
        with self.stepped:
            assert self.stepped.wait_for(lambda: self.begun > count, timeout=60)

    def close(self) -> None:
        self.closed = True

    def _logits(self, slot: Slot) -> Any:
        said = [*self.script, EOS]
        logits = np.zeros(VOCAB, np.float32)
        logits[self.second] = 5.0
        logits[said[slot.length % len(said)]] = 10.0
        return logits


@pytest.fixture
def engine(
    byte_tokenizer: Tokenizer, facts: Callable[..., LanguageModelFacts]
) -> Iterator[Callable[..., OnnxEngine]]:
    """`engine(model, queue_limit=…, stop=…, **facts)`; closed after the test."""
    opened: list[OnnxEngine] = []

    def make(
        model: ScriptedModel,
        *,
        queue_limit: int = 64,
        stop: tuple[str, ...] = (),
        patience_s: float = BULK_PATIENCE_S,
        **changes: Any,
    ) -> OnnxEngine:
        made = facts(image_token_id=IMAGE, **changes)
        prompts = PromptTokenizer(
            tokenizer=byte_tokenizer,
            limit=made.max_length - 1,
            queries=made.num_query_tokens,
            images="frames",
            most_images=4,
            image_token_id=IMAGE,
        )
        opened.append(
            OnnxEngine(
                model, prompts, made, queue_limit=queue_limit, stop=stop, patience_s=patience_s
            )
        )
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def ask() -> Callable[..., GenerationRequest]:
    """`ask("What?", deadline=…, max_new_tokens=…)`: a request with a fitting visual prompt."""

    def make(
        prompt: str = "What?",
        *,
        deadline: float | None = None,
        images: int = 1,
        priority: Priority = "interactive",
        **options: Any,
    ) -> GenerationRequest:
        return GenerationRequest(
            prompt=prompt,
            visual_prompt=np.zeros((images, 4, 8), np.float32),
            options=GenerationOptions.from_mapping(options),
            deadline=deadline,
            priority=priority,
        )

    return make


@pytest.fixture
def scripted() -> type[ScriptedModel]:
    return ScriptedModel
