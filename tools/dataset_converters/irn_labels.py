"""Twin of `adcam convert irn-labels`: same arguments, same exit codes."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "irn-labels", *sys.argv[1:]]))
