"""A disk that is full, for tests."""

import resource
from contextlib import contextmanager


@contextmanager
def files_of_at_most(size):
    """For this process files end at so many bytes, as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
