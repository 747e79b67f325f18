"""Where Triton looks for the GPU's driver."""

from __future__ import annotations

import subprocess

from triton.backends.nvidia import driver


def find_driver() -> tuple[str, list[str]]:
    """The file that Triton links its launcher with, and the folders in which it looks for it."""
    # Triton 3.5 and older let the linker look for -lcuda, so for a name without a number.
    library = "libcuda.so" if "cuda" in driver.libraries else "libcuda.so.1"
    try:
        return library, driver.libcuda_dirs()
    except (AssertionError, OSError, subprocess.SubprocessError):  # there is none, or no ldconfig
        return library, []
