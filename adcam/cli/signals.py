"""Ctrl-C and SIGTERM: a command ends within two seconds, whatever it is computing."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import NoReturn

from adcam.cli.console import EXIT_INTERRUPTED, EXIT_TERMINATED, log

GRACE_S = 1.8
"""Seconds that a command has for an orderly end: workers are ended, locks given back."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM, as batch systems and containers do."""


@contextmanager
def orderly_end(name: str) -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM, and see to it that both signals end the block in time.

    Python handles a signal between two of its own instructions, and a CRF of a large image is one
    of them. A thread therefore waits for signals too, and ends the process itself where the block
    has not ended after :data:`GRACE_S`. What is half done is done again when the command resumes.
    The message names the command by ``name``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _forget_in_forks()
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    ended = threading.Event()
    former_handler = signal.signal(signal.SIGTERM, _terminate)
    former_descriptor = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(receiver, ended, name), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(former_descriptor)
        signal.signal(signal.SIGTERM, former_handler)
        # Not only closed: a process that was forked meanwhile, such as a data loader's, holds it
        # too, and the thread would wait for as long as that lives.
        sender.shutdown(socket.SHUT_WR)
        sender.close()
        watch.join()
        receiver.close()


@cache
def _forget_in_forks() -> None:
    """Leave the signals of forked processes alone: what ends a data loader ends nothing else."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_restore)


def _restore() -> None:
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def _watch(receiver: socket.socket, ended: threading.Event, name: str) -> None:
    codes = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}
    while received := receiver.recv(1):
        code = codes.get(signal.Signals(received[0]))
        if code is not None and not ended.wait(GRACE_S):
            with suppress(OSError):
                log(f"adcam {name}: {describe_end(code)} in the middle of an image")
            os._exit(code)


def end_process(code: int) -> NoReturn:
    """End this process without taking torch apart, which on a busy machine takes seconds."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def describe_end(code: int) -> str:
    """Return what an exit code says of how a command ended."""
    return "terminated" if code == EXIT_TERMINATED else "interrupted"
