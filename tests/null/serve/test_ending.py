# SPDX-License-Identifier: MIT
"""The end of a server: open requests get their time, a second signal takes it back, the engine stops once."""

from __future__ import annotations

import asyncio

from tokenspeed.serve.server import Ending


class Draining:
    """An engine whose drain lasts until it is told to end."""

    def __init__(self) -> None:
        self.drained = asyncio.Event()
        self.patience_s: list[float] = []
        self.stops = 0

    async def drain(self, timeout_s: float) -> bool:
        self.patience_s.append(timeout_s)
        await self.drained.wait()
        return True

    async def stop(self) -> None:
        self.stops += 1


def test_open_requests_get_their_time():
    async def scenario() -> None:
        engine = Draining()
        ending = Ending(engine)  # type: ignore[arg-type]
        ending.begin(patience_s=20.0)
        while not engine.patience_s:
            await asyncio.sleep(0)
        assert (engine.patience_s, engine.stops) == ([20.0], 0)
        engine.drained.set()
        await ending.finish(patience_s=0)
        assert (engine.patience_s, engine.stops) == ([20.0], 1)

    asyncio.run(scenario())


def test_asking_again_ends_the_wait():
    async def scenario() -> None:
        engine = Draining()
        ending = Ending(engine)  # type: ignore[arg-type]
        ending.begin(patience_s=20.0)
        ending.begin(patience_s=20.0)
        await ending.finish(patience_s=0)
        assert engine.stops == 1

    asyncio.run(scenario())
