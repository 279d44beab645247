"""Makes modules of torch whose parameters take no memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from transformers.initialization import no_init_weights


def _on_meta(param: torch.nn.Parameter) -> torch.nn.Parameter:
    return param if param.is_meta else torch.nn.Parameter(param.to("meta"))


@contextlib.contextmanager
def without_memory(
    replace: Callable[[torch.nn.Parameter], torch.nn.Parameter] = _on_meta,
) -> Iterator[None]:
    """Modules that are constructed inside keep the shapes and dtypes of their parameters alone.

    Buffers are real: modules compute with them. Only one parameter at a time is allocated, and its
    memory is never touched.

    Args:
        replace: makes what a module registers instead of a parameter; by default the same on
            torch's meta device.
    """
    original = torch.nn.Module.register_parameter

    def register(module: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        original(module, name, None if param is None else replace(param))

    torch.nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
    try:
        with no_init_weights():
            yield
    finally:
        torch.nn.Module.register_parameter = original  # type: ignore[method-assign]
