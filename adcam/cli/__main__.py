"""``python -m adcam.cli``, the form that torchrun takes."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main())
