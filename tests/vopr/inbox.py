"""What waits at the end of a connection."""

import asyncio
from collections import deque
from typing import Any


class Inbox:
    """What has arrived and was not read. Reading is cancellable, and loses nothing by it."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Any) -> None:
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def replace_by(self, item: Any) -> None:
        """All unread is lost."""
        self._items.clear()
        self.put(item)

    async def get(self) -> Any:
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._items.popleft()
