"""``python -m adcam.cli``: the same as ``adcam``."""

from __future__ import annotations

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main())
