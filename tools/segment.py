"""Twin of `adcam segment` for those used to tools/*.py: same arguments, same exit codes."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main(["segment", *sys.argv[1:]]))
