"""Twin of `adcam convert voc-labels`: same arguments, same exit codes."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "voc-labels", *sys.argv[1:]]))
