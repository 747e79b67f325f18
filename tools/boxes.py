"""Twin of `adcam boxes` for those used to tools/*.py: same arguments, same exit codes."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main(["boxes", *sys.argv[1:]]))
