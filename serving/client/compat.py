"""Asking as an original does: the server says which model it serves, a preset how to ask it."""

from __future__ import annotations

from dataclasses import replace

from iblip.engines.language_model.keywords import Options
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.presets import RANKING, Preset, preset
from iblip.engines.language_model.types import Answer
from iblip.serving.wire.contract import ServerContract


def preset_of_server(contract: ServerContract, compat: str, call: str | None = None) -> Preset:
    """How that original answers with the model that is served.

    Raises:
        OptionError: there is no such original, or it has no such model or call.
    """
    build = contract.build
    return preset(compat, family=build.family, language_model=build.language_model, call=call)


def resolve_options(
    contract: ServerContract, options: Options, compat: str | None
) -> tuple[GenerationOptions, Preset | None]:
    """The options to send, and the preset they come from, if any.

    Raises:
        OptionError: see `preset_of_server`; or the options contradict each other.
    """
    if compat is None:
        if isinstance(options, GenerationOptions):
            return options, None
        return GenerationOptions.from_mapping(options), None
    ranks = (
        options.candidates if isinstance(options, GenerationOptions) else "candidates" in options
    )
    original = preset_of_server(contract, compat, RANKING if ranks else None)
    return original.with_options(options), original


def trim_answer(answer: Answer, original: Preset | None) -> Answer:
    """The answer with its texts as the original's caller gets them; a ranking's stay as given."""
    if original is None:
        return answer
    others = tuple(replace(other, text=original.finished(other.text)) for other in answer.others)
    return replace(answer, text=original.finished(answer.text), others=others)
