"""The paged KV cache's bookkeeping: which pages are free and how many sequences refer to each one that is not.

A stack of free page numbers and a count per page, both NumPy, so that a step which needs hundreds of pages takes one slice. Page 0 is
never handed out: padding rows of a CUDA graph write there. Counts exist so that sequences may share a prefix; a page returns to the
stack when its last reference is dropped. Contents are never cleared: a sequence reads only positions it has written.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]

RESERVED_PAGES = 1
"""Page 0, padding's."""


class PagePool:
    """`num_pages` counts page 0; `capacity` pages can be handed out."""

    def __init__(self, num_pages: int) -> None:
        if num_pages <= RESERVED_PAGES:
            raise ValueError(f"a KV cache of {num_pages} pages holds nothing; page 0 is padding's")
        self.capacity = num_pages - RESERVED_PAGES
        self.refs = np.zeros(num_pages, np.int32)
        self._stack = np.arange(num_pages - 1, RESERVED_PAGES - 1, -1, dtype=np.int32)
        self._free = self.capacity

    @property
    def free(self) -> int:
        return self._free

    @property
    def used(self) -> int:
        return self.capacity - self._free

    def take(self, count: int) -> IntArray:
        """`count` pages with one reference each. The caller has checked `free`."""
        if count > self._free:
            raise RuntimeError(f"page pool exhausted: {count} wanted, {self._free} free")
        self._free -= count
        pages = self._stack[self._free : self._free + count][::-1].copy()
        self.refs[pages] = 1
        return pages

    def share(self, pages: IntArray) -> None:
        """One more reference to each of `pages` (distinct, in use)."""
        if (self.refs[pages] < 1).any():
            raise RuntimeError("a free page cannot be shared")
        self.refs[pages] += 1

    def drop(self, pages: IntArray) -> None:
        """One reference less to each of `pages` (distinct); those without one are free again."""
        if (self.refs[pages] < 1).any():
            raise RuntimeError("a page was released twice")
        self.refs[pages] -= 1
        freed = pages[self.refs[pages] == 0]
        self._stack[self._free : self._free + len(freed)] = freed
        self._free += len(freed)
