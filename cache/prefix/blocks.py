"""What stored K/V is called on disk: blocks of tokens, each named after all tokens before it.

- A block is tokens [i x block_tokens, (i + 1) x block_tokens) of a path. Where the tree cuts and
  joins its edges has no part in it: what is equal has one name, however it came about.
- `path` names the tokens from 0 up to a block's end, `name` the same under one root key. Both are
  keyed hashes with the folder's own salt: nothing can be told from them without it, and another
  model, tenant, block size, storage or format has other names.
- A tenant has one name under every model: the first TENANT_BYTES of a root key are its own.
- Pure: equal arguments, equal names.
"""

from __future__ import annotations

import hashlib
from array import array
from itertools import pairwise
from typing import Literal, NamedTuple

BLOCK_FORMAT = 2  # of names and files; another number finds nothing of before
NAME_BYTES = 20
TENANT_BYTES = 16
_TENANT_NAME_BYTES = 8
Storage = Literal["exact", "8bit"]  # how K/V lies in a file
BLOCK_TOKENS_MIN, BLOCK_TOKENS_MAX = 16, 128
_BLOCK_BYTES = 4 << 20  # about what a block may take in either kind of layer


class Block(NamedTuple):
    """Tokens [start, end) of a path. above: `path` of the block before."""

    name: bytes
    path: bytes
    above: bytes
    start: int
    end: int


def block_tokens(bytes_per_token: int) -> int:
    """How many tokens a block has where its dearer kind of layer takes so much for each.

    A power of two. As large as can be copied between two steps without their being felt.
    """
    tokens = BLOCK_TOKENS_MAX
    while tokens > BLOCK_TOKENS_MIN and tokens * bytes_per_token > _BLOCK_BYTES:
        tokens //= 2
    return tokens


class Names:
    """The names of one folder, for blocks of one size that are stored in one way."""

    def __init__(self, salt: bytes, tokens: int, storage: Storage = "exact") -> None:
        assert tokens > 0 and salt, "blocks without tokens, or names without salt"
        self.block_tokens = tokens
        self._salt = salt
        # `above` of every first block.
        self.top = self._hash(b"top", b"%d %s" % (BLOCK_FORMAT, storage.encode()))

    def blocks(self, root: bytes, tokens: array[int], end: int) -> list[Block]:
        """All whole blocks of tokens[:end] under a root key, from 0 on."""
        size, paths = self.block_tokens, self.paths(tokens, end)
        return [
            Block(self.name(root, path), path, above, i * size, (i + 1) * size)
            for i, (above, path) in enumerate(pairwise(paths))
        ]

    def name(self, root: bytes, path: bytes) -> bytes:
        """Of the block `path` under a root key."""
        return self._hash(b"name", root + path)

    def tenant(self, root: bytes) -> bytes:
        """Whose a block under a root key is."""
        return self._hash(b"tenant", root[:TENANT_BYTES])[:_TENANT_NAME_BYTES]

    def paths(self, tokens: array[int], end: int, above: bytes = b"") -> list[bytes]:
        """`above` of the first block, then `path` of each that lies within tokens[:end] whole.

        above: `path` of the block that ends where the tokens begin; none: they begin at 0.
        """
        size, found = self.block_tokens, [above or self.top]
        for start in range(0, end - size + 1, size):
            found.append(self._hash(b"path", found[-1] + tokens[start : start + size].tobytes()))
        return found

    def _hash(self, person: bytes, data: bytes) -> bytes:
        keyed = hashlib.blake2b(data, digest_size=NAME_BYTES, key=self._salt, person=person)
        return keyed.digest()
