"""The end of a command."""

from __future__ import annotations

import multiprocessing
import time

from adcam.cli.signals import orderly_end


def test_a_process_that_was_forked_and_lives_on_does_not_hold_a_command() -> None:
    """Data loaders of a training live until their Runner is collected."""
    start = time.monotonic()
    with orderly_end("train"):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
    took = time.monotonic() - start
    child.kill()
    child.join()
    assert took < 30
