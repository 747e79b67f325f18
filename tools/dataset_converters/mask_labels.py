"""Twin of `adcam convert mask-labels`: same arguments, same exit codes."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "mask-labels", *sys.argv[1:]]))
