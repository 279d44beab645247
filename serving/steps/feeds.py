"""What a request to a component must be before it may share a batch with others.

Triton checks less: it takes a batch of 0, and knows neither vocabularies nor longest instructions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from iblip.export.artifact.contract import Contract
from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import InputError

Tensors = Mapping[str, npt.NDArray[Any]]

IDS, MASK = "qformer_input_ids", "qformer_attention_mask"


@dataclass(frozen=True, kw_only=True)
class FeedRules:
    """The rules for the requests of one component.

    Attributes:
        contract: of its graph.
        row_axis: whether every row of an input comes as one row of its own, `[batch, 1, ...]`: see
            `serving.repository.model_config.add_row_axis`.
        vocab_size: of the Q-Former; 0 if unknown.
        max_instruction: most tokens of an instruction; 0 if unknown.
    """

    contract: Contract
    row_axis: bool = False
    vocab_size: int = 0
    max_instruction: int = 0

    @classmethod
    def from_manifest(cls, manifest: Manifest, component: str, *, row_axis: bool) -> Self:
        """The rules for a component of a build."""
        return cls(
            contract=manifest.components[component].graphs["model"].contract,
            row_axis=row_axis,
            vocab_size=manifest.text.qformer_vocab_size,
            max_instruction=manifest.max_instruction,
        )

    def checked(self, tensors: Tensors) -> Tensors:
        """The request's tensors as the contract has them, `[batch, ...]`.

        Raises:
            InputError: there are no rows, an instruction is too long, a token is outside of the
                vocabulary, or a mask is not one.
            ContractError: names, dtypes or sizes differ from the contract.
        """
        feed = {name: self._without_row_axis(name, array) for name, array in tensors.items()}
        self.contract.check_feed(feed)
        for name, array in feed.items():
            if not len(array):
                raise InputError(f"{name!r} has a batch of 0; expected 1 or more")
        if IDS in feed:
            self._check_ids(feed[IDS])
            _check_mask(feed[MASK])
        return feed

    def _without_row_axis(self, name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Drops the axis of size 1 that stands after the batch: `[batch, 1, ...]`.

        Triton leaves a batch of 0 out of the shape, `[1, ...]`, but has checked that there is one
        row. It is answered as one: Triton's response cache, which sees only the bytes, would keep a
        refusal as the empty answer to everybody who sends that picture.
        """
        axes = next((len(spec.axes) for spec in self.contract.inputs if spec.name == name), 0)
        return array.squeeze(1) if self.row_axis and array.ndim == axes + 1 else array

    def _check_ids(self, ids: npt.NDArray[np.int64]) -> None:
        """Checks token ids, int64 `[batch, instruction]`."""
        length = ids.shape[1]
        if self.max_instruction and not 1 <= length <= self.max_instruction:
            raise InputError(
                f"{IDS!r} has {length} tokens a row; expected 1 to {self.max_instruction}"
            )
        outside = ids[(ids < 0) | (ids >= self.vocab_size)] if self.vocab_size else ids[:0, 0]
        if outside.size:
            raise InputError(
                f"{IDS!r} has the token {outside[0]}; expected 0 to {self.vocab_size - 1}, the "
                "Q-Former's vocabulary"
            )


def _check_mask(mask: npt.NDArray[np.int64]) -> None:
    """Checks an attention mask, int64 `[batch, instruction]`."""
    outside = mask[(mask < 0) | (mask > 1)]
    if outside.size:
        raise InputError(f"{MASK!r} has {outside[0]}; expected 0 or 1")
