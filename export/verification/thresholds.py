"""The limits of the parity report, stage by stage: one row for each precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Band:
    """The limits of blocks' errors (`export.verification.blocks`).

    Attributes:
        own: largest relative error that a block may cause by itself. The stream after block d may
            have the square root of d times that.
    """

    own: float


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Limits of one precision; each is the largest allowed value, except for `top1`.

    Attributes:
        block: a block's own relative error, as `Band.own`.
        divergence: mean Kullback-Leibler divergence of the first token's distribution from the
            reference's, in nats.
        top1: the smallest share of examples whose most likely first token is the reference's.
        accuracy_loss: share of right answers that may be lost; whatever it is but 0, one example
            may go either way.
        batching: change of a row by what is computed beside it, over the largest value.
        padding: change of a row by its padding, likewise.
    """

    block: float
    divergence: float
    top1: float
    accuracy_loss: float
    batching: float
    padding: float

    @property
    def band(self) -> Band:
        """Limits of blocks' errors."""
        return Band(own=self.block)


THRESHOLDS: Mapping[str, Thresholds] = {
    "fp32": Thresholds(
        block=1e-5, divergence=1e-7, top1=1.0, accuracy_loss=0.0, batching=1e-5, padding=1e-5
    ),
    "fp16": Thresholds(
        block=5e-3, divergence=1e-3, top1=0.99, accuracy_loss=0.005, batching=5e-3, padding=5e-3
    ),
    "bf16": Thresholds(
        block=4e-2, divergence=1e-2, top1=0.97, accuracy_loss=0.01, batching=4e-2, padding=4e-2
    ),
    "lavis": Thresholds(
        block=5e-3, divergence=1e-3, top1=0.99, accuracy_loss=0.005, batching=5e-3, padding=5e-3
    ),
    "int8": Thresholds(
        block=5e-2, divergence=5e-2, top1=0.97, accuracy_loss=0.01, batching=5e-2, padding=5e-2
    ),
    "int4": Thresholds(
        block=0.3, divergence=0.2, top1=0.93, accuracy_loss=0.02, batching=1e-5, padding=1e-5
    ),
    "int4-fp16": Thresholds(
        block=0.3, divergence=0.2, top1=0.93, accuracy_loss=0.02, batching=5e-3, padding=5e-3
    ),
    "int4-bf16": Thresholds(
        block=0.3, divergence=0.2, top1=0.93, accuracy_loss=0.02, batching=4e-2, padding=4e-2
    ),
    "int8-bf16": Thresholds(
        block=5e-2, divergence=5e-2, top1=0.97, accuracy_loss=0.01, batching=4e-2, padding=4e-2
    ),
    "int8-fp16": Thresholds(
        block=5e-2, divergence=5e-2, top1=0.97, accuracy_loss=0.01, batching=1e-2, padding=1e-2
    ),
    "fp8": Thresholds(
        block=8e-2, divergence=5e-2, top1=0.97, accuracy_loss=0.01, batching=1e-2, padding=1e-2
    ),
}
"""By precision. In fp32, differences come from the order of summation, with 24 bits of mantissa.
fp16 and bf16 have 11 and 8 bits, so their errors are larger by that many powers of 2. With 8 and 4
bits the weights are others, and the limit is the loss of accuracy that this project promises.
Batches and padding change only the order of sums, except in int8, which scales activations by the
largest in a batch; with static scales, a value between two numbers may be rounded to either."""


AGREEMENT: Mapping[str, float] = {
    "fp32": 1.0,
    "fp16": 0.99,
    "bf16": 0.97,
    "lavis": 0.99,
    "int8": 0.98,
    "int4": 0.95,
    "int4-fp16": 0.95,
    "int4-bf16": 0.95,
    "int8-bf16": 0.97,
    "int8-fp16": 0.98,
    "fp8": 0.98,
}
"""Precision to the smallest share of examples whose text must equal transformers'."""


def thresholds_of(precisions: Iterable[str]) -> Thresholds:
    """Returns the limits of a chain of components: the laxest of their precisions' for each."""
    rows = [THRESHOLDS[precision] for precision in precisions]
    laxest = {
        field.name: (min if field.name == "top1" else max)(getattr(row, field.name) for row in rows)
        for field in fields(Thresholds)
    }
    return Thresholds(**laxest)
