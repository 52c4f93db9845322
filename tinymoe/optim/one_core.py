"""Settling down on one core."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one_core() -> Iterator[None]:
    """While inside, BLAS uses one thread; and from then on glibc keeps freed memory.

    By default it gives that of large temporaries back, and the system fills what it hands out anew with zeros.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # not in musl
            libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    with threadpool_limits(1):
        yield
