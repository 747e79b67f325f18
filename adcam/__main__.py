"""``python -m adcam``, the same as the command ``adcam``; torchrun starts it so."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main())
