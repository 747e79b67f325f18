"""Twin of `adcam demo` for those used to tools/*.py: same arguments, same exit codes."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
