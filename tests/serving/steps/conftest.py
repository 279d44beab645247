"""The step that answers, on a fake engine."""

from __future__ import annotations

import pytest

from iblip.serving.steps.answering import Answering, CallerLimits
from tests.serving.steps.fakes import FakeEngine, decode, encode


@pytest.fixture
def answering():
    opened = []

    def make(
        *generations, encode=encode, decode=decode, decoders=1, check=encode, queue=1000, **limits
    ):
        engine = FakeEngine(*generations)
        engine.queue = queue
        how = {
            "decode": decode,
            "decoders": decoders,
            "check": check,
            "callers": CallerLimits(**limits),
        }
        opened.append(Answering(engine, encode, **how, poll_s=0.001))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
