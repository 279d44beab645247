"""The servers behind a gateway, each a model by name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from iblip.export.errors import IblipError
from iblip.export.messages import did_you_mean, shown
from iblip.serving.client.asynchronous import AsyncClient
from iblip.serving.gateway.errors import UnknownModelError
from iblip.serving.gateway.token_texts import TokenTexts
from iblip.serving.wire.contract import ServerContract

PROBE_S = 2.0
"""Seconds that a probe waits for a server."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One server.

    Attributes:
        name: by which requests choose it.
        client: asks it.
        tokens: what its tokens say.
    """

    name: str
    client: AsyncClient
    tokens: TokenTexts

    async def contract(self) -> ServerContract:
        """What the server takes; asked for once.

        Raises:
            IblipError: it does not answer.
        """
        return await self.client.contract()

    async def fault(self) -> IblipError | None:
        """Why it does not answer now; `None` where it does."""
        try:
            await self.client.wait_until_ready(PROBE_S)
        except IblipError as error:
            return error
        return None


class ServedModels:
    """All servers of a gateway, by name."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = {model.name: model for model in models}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def named(self, name: str) -> ServedModel:
        """The model of that name.

        Raises:
            UnknownModelError: there is none.
        """
        if name in self._models:
            return self._models[name]
        known = ", ".join(map(repr, self._models))
        raise UnknownModelError(
            f"there is no model {shown(name)}.{did_you_mean(name, self._models)} Models: {known}"
        )

    async def faults(self) -> dict[str, IblipError | None]:
        """What is wrong with each now."""
        faults = await asyncio.gather(*(model.fault() for model in self))
        return dict(zip(self._models, faults, strict=True))

    async def close(self) -> None:
        """Closes the connections."""
        for model in self:
            await model.client.close()
