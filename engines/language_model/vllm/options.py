"""A request's options in vLLM's words, and refusal of what vLLM cannot do.

vLLM differs from `engines.language_model.decoding.sampling` in places: it samples with another
random generator, applies `min_p` before `top_k` and `top_p`, and knows a banned word of several
tokens only where the answer has all of them. docs/vllm.md says so to users.
"""

from __future__ import annotations

from typing import Any

from iblip.engines.language_model.answering import AnswerLimits
from iblip.engines.language_model.decoding.logits_processors import Words
from iblip.engines.language_model.option_table import MAX_SEED, OPTIONS, VLLM
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.types import PromptIds
from iblip.export.artifact.manifest import LanguageModelFacts
from iblip.export.errors import OptionError

TEMPERATURES = (0.01, 2.0)
"""The least above 0 (vLLM takes what is below for this, and says so in its log alone), and the
greatest that vLLM takes."""


def check_options(options: GenerationOptions) -> None:
    """Refuses what vLLM would not do as asked.

    Raises:
        OptionError: naming the option, and the engine that has it.
    """
    for name, value in options.to_mapping().items():
        engines = OPTIONS[name].engines
        if VLLM not in engines:
            raise OptionError(
                f"{name} is {value!r}; this model runs on vLLM, which has no {name}. Leave it "
                f"out, or build with --llm-engine {engines[0]}, which has it."
            )
    least, greatest = TEMPERATURES
    if options.temperature and not least <= options.temperature <= greatest:
        raise OptionError(
            f"temperature is {options.temperature}; this model runs on vLLM, which takes 0 "
            f"(greedy) and {least} to {greatest}. Choose one of these, or build with "
            "--llm-engine onnxruntime."
        )


def params_from_options(
    options: GenerationOptions,
    limits: AnswerLimits,
    facts: LanguageModelFacts,
    *,
    banned: Words = (),
    seed: int | None,
    index: int = 0,
) -> dict[str, Any]:
    """What the worker makes vLLM's `SamplingParams` of, JSON-ready.

    Stop strings are not among it: text is made here. Ends of sequence are given as tokens to stop
    at, so that vLLM needs neither the tokenizer nor a generation config.

    Args:
        options: that `check_options` lets pass.
        limits: of the answer.
        facts: of the model.
        banned: token ids of every banned word.
        seed: of the random generator; `None` for greedy.
        index: tells this answer from others to the same request.
    """
    ends = dict.fromkeys((*facts.eos_token_ids, *options.stop_token_ids))
    params: dict[str, Any] = {
        "max_tokens": limits.max_tokens,
        "min_tokens": limits.min_tokens,
        "temperature": options.temperature,
        "repetition_penalty": options.repetition_penalty,
        "stop_token_ids": list(ends),
        "ignore_eos": True,
        "logit_bias": {str(token): bias for token, bias in options.logit_bias.items()},
        "banned_token_ids": [list(word) for word in banned],
    }
    if seed is not None:
        params |= {
            "top_k": min(options.top_k, facts.vocab_size),
            "top_p": options.top_p,
            "min_p": options.min_p,
            "seed": (seed + index) % (MAX_SEED + 1),
        }
    if options.logprobs is not None:
        params["logprobs"] = min(options.logprobs, facts.vocab_size)
    return params


def prompt_positions(prompt: PromptIds, facts: LanguageModelFacts) -> tuple[list[int], list[int]]:
    """A token id for every position of the prompt, and the position where each image starts.

    What stands for the image counts as said for the repetition penalty alone. That is the image
    token; where the model has none, a token of the prompt, which counts anyway.
    """
    image = facts.image_token_id
    known = image is not None and image < facts.vocab_size
    placeholder = image if known and image is not None else prompt.ids[0]
    queries = facts.num_query_tokens
    starts = [place + queries * index for index, place in enumerate(prompt.places)]
    return prompt.fill(*[placeholder] * queries), starts
