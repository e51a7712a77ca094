"""The cache of a pretend worker: pages in a plain tree, least recently used out first."""

from collections import OrderedDict
from dataclasses import dataclass, field

from preble.events import CacheEvent, Evicted, Stored
from preble.page_keys import KEY_BYTES


@dataclass(slots=True, eq=False)
class Page:
    key: bytes
    parent: "Page | None"
    children: "dict[bytes, Page]" = field(default_factory=dict)
    num_users: int = 0

    def path(self) -> bytes:
        keys = []
        page: Page | None = self
        while page is not None:
            keys.append(page.key)
            page = page.parent
        return b"".join(reversed(keys))


class PretendCache:
    """Pages in a tree, least recently used leaf first out."""

    def __init__(self, num_pages_max: int) -> None:
        self.num_pages_max = num_pages_max
        self.root = Page(b"", None)
        self.num_pages = 0
        self.key_sum = 0
        self.events: list[CacheEvent] = []
        self._recency: OrderedDict[Page, None] = OrderedDict()
        self._last_evicted: Page | None = None

    def match(self, path: bytes) -> list[Page]:
        pages = []
        page = self.root
        for at in range(0, len(path), KEY_BYTES):
            child = page.children.get(path[at : at + KEY_BYTES])
            if child is None:
                break
            page = child
            pages.append(page)
        self._touch(pages)
        return pages

    def store(self, path: bytes) -> list[Page]:
        pages = self.match(path)
        if len(pages) * KEY_BYTES == len(path):
            return pages
        for page in pages:
            page.num_users += 1
        page = pages[-1] if pages else self.root
        for at in range(len(pages) * KEY_BYTES, len(path), KEY_BYTES):
            if self.num_pages >= self.num_pages_max:
                self._evict_one()
            key = path[at : at + KEY_BYTES]
            child = Page(key, None if page is self.root else page, num_users=1)
            page.children[key] = child
            self.num_pages += 1
            self.key_sum += int.from_bytes(key, "big")
            page = child
            pages.append(page)
        self._touch(pages)
        for page in pages:
            page.num_users -= 1
        self.events.append(Stored(path))
        return pages

    def _touch(self, pages: list[Page]) -> None:
        """Leaf first, so that a page is always more recent than those behind it."""
        for page in reversed(pages):
            self._recency[page] = None
            self._recency.move_to_end(page)

    def _evict_one(self) -> None:
        page = next(p for p in self._recency if not p.num_users and not p.children)
        del self._recency[page]
        del (page.parent or self.root).children[page.key]
        self.num_pages -= 1
        self.key_sum -= int.from_bytes(page.key, "big")
        last = self.events[-1] if self.events else None
        if isinstance(last, Evicted) and self._last_evicted is page.parent:
            self.events[-1] = Evicted(last.path, last.keep - 1)
        else:
            path = page.path()
            self.events.append(Evicted(path, len(path) // KEY_BYTES - 1))
        self._last_evicted = page.parent
