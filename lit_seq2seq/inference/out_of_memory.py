"""Running out of memory."""

from __future__ import annotations

import errno
import gc
import re

import torch

_SIGNS = re.compile(
    r"could not (create|execute) a primitive(?! descriptor)|could not create a memory object|std::bad_alloc"
    r"|STATUS_ALLOC_FAILED|CUDNN_STATUS_NOT_SUPPORTED\.|(not enough|out of|(can't|cannot) allocate) memory",
    re.IGNORECASE,
)
"""What kernels say in plain RuntimeErrors; oneDNN cannot create a primitive when there is no room for it."""


def lacks_memory(error: BaseException) -> bool:
    """Whether a computation failed because the device or the machine is out of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    told = isinstance(error, RuntimeError) and _SIGNS.search(str(error)) is not None
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)


def release_memory() -> None:
    """Give back what a failed computation held; to be called outside of the handler, which holds on to it."""
    gc.collect()
    torch.cuda.empty_cache()
