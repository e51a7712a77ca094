"""Token ids as bytes, and the page keys by which routers compare prompts.

Tokens travel and rest as little-endian uint32 `bytes`: a page is a slice, equality is a memcmp,
and NumPy reads them without a copy. A *page key* is the 64-bit xxh3 of one page's tokens, seeded
by the tenant's namespace; a *key path* is the concatenation of the keys of a prompt's full pages.
A collision of keys misleads a router's guess and nothing else: workers compare tokens.
"""

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

TOKEN_BYTES = 4
KEY_BYTES = 8
DEFAULT_PAGE_TOKENS = 16

TOKEN_DTYPE = np.dtype("<u4")
KEY_DTYPE = np.dtype(">u8")
_FEW_KEY_BYTES = 16 * KEY_BYTES
"""Of so many keys and fewer, Python takes the sum in less time than NumPy."""
_MASK = (1 << 64) - 1


def pack_tokens(ids: Sequence[int] | npt.NDArray[np.integer]) -> bytes:
    """Token ids as little-endian uint32 bytes.

    Raises:
        OverflowError: an id is negative or does not fit 32 bits.
    """
    wide = np.asarray(ids, dtype=np.int64)
    if wide.size and (int(wide.min()) < 0 or int(wide.max()) > 0xFFFF_FFFF):
        raise OverflowError("token ids must lie in 0 ... 2**32 - 1")
    return wide.astype(TOKEN_DTYPE).tobytes()


def unpack_tokens(tokens: bytes) -> npt.NDArray[np.uint32]:
    """A read-only uint32 view of packed tokens, shape (num_tokens,)."""
    return np.frombuffer(tokens, dtype=TOKEN_DTYPE)


def num_tokens(tokens: bytes) -> int:
    """How many tokens packed `tokens` holds."""
    return len(tokens) // TOKEN_BYTES


def namespace_seed(namespace: str) -> int:
    """The seed of a namespace's page keys; 0 for the default namespace "" ."""
    return xxhash.xxh3_64_intdigest(namespace.encode()) if namespace else 0


def namespace_page(namespace: str, page_bytes: int) -> bytes:
    """The first page of every path in a worker's cache, which keeps namespaces apart.

    A cryptographic digest, so that no tenant can choose a name that meets another tenant's page.
    """
    return hashlib.shake_256(namespace.encode()).digest(page_bytes)


def page_keys(tokens: bytes, *, page_tokens: int = DEFAULT_PAGE_TOKENS, seed: int = 0) -> bytes:
    """The key path of packed `tokens`: `KEY_BYTES` per full page, a partial page dropped."""
    width = page_tokens * TOKEN_BYTES
    end = len(tokens) - len(tokens) % width
    digest = xxhash.xxh3_64_digest
    return b"".join([digest(tokens[i : i + width], seed) for i in range(0, end, width)])


def key_sum(path: bytes) -> int:
    """Sum of the keys of `path` modulo 2**64, the order-free digest that compares caches."""
    if len(path) <= _FEW_KEY_BYTES:
        keys: tuple[int, ...] = struct.unpack(f">{len(path) // KEY_BYTES}Q", path)
        return sum(keys) & _MASK
    return int(np.frombuffer(path, dtype=KEY_DTYPE).sum(dtype=np.uint64))
