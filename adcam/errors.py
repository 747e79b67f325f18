"""AdcamError, for mistakes that a user can mend, and helpers for the text of messages."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_NO_MEMORY = (
    "failed to map segment",  # the loader of libraries
    "allocate memory",  # torch's allocator
    "could not create a primitive",  # oneDNN, which says no more
)

_NO_GPU_MEMORY = (
    "out of memory",  # torch's allocator on a GPU, its driver, and Triton
    "STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN
)


class AdcamError(ValueError):
    """Something that a user gave is wrong: a file, a setting, an argument of a command.

    Its message names the file or setting, the value found and what would be right. The command
    line prints it without a traceback; every other exception is a fault of the program and keeps
    its traceback.
    """


@contextmanager
def naming(where: object) -> Iterator[None]:
    """Say in front of an error's message what it is about.

    Raises:
        AdcamError: The block raised one; the message begins with ``where``.
    """
    try:
        yield
    except AdcamError as error:
        raise AdcamError(f"{where}: {error}") from error


@contextmanager
def reading_config(section: str) -> Iterator[None]:
    """Report what a library says of a part of a config as a mistake in it.

    Raises:
        AdcamError: What is built within the block does not exist, or does not take its options; the
            message begins with ``section``.
    """
    try:
        yield
    except AdcamError:
        raise
    except (AssertionError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise AdcamError(f"{section} cannot be used: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return what an error says on one line, or its type if it says nothing.

    Example:
        >>> one_line(ValueError("a\\nb")), one_line(KeyError()), one_line(MemoryError())
        ('a b', 'KeyError', 'no memory is left')
    """
    if isinstance(error, MemoryError) and not str(error):
        return "no memory is left"
    return " ".join(str(error).split()) or type(error).__name__


def join_some(items: Sequence[object], most: int = 5, separator: str = ", ") -> str:
    """Name the first items, and say how many more there are.

    Example:
        >>> join_some("abcd", 2)
        'a, b, … (2 more)'
    """
    shown = [*map(str, items[:most])]
    if (rest := len(items) - most) > 0:
        shown.append(f"… ({rest} more)")
    return separator.join(shown)


def lacks_memory(error: BaseException) -> bool:
    """Tell whether an error, or one that caused it, means that there was not enough memory."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or getattr(seen, "errno", None) == errno.ENOMEM:
            return True
        if any(sign in str(seen) for sign in (*_NO_MEMORY, *_NO_GPU_MEMORY)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def explain_memory(error: BaseException) -> str:
    """Say what to do about an error of which :func:`lacks_memory` is true."""
    if any(sign in str(error) for sign in _NO_GPU_MEMORY):
        return (
            f"the GPU does not have enough memory ({one_line(error)}): see with nvidia-smi what "
            "else takes it, or ask for less, such as smaller batches; the same command goes on "
            "where this one ended"
        )
    return (
        f"there is not enough memory ({one_line(error)}): allow this process or its container "
        "more, or ask for less, such as fewer --workers; the same command goes on where this one "
        "ended"
    )
