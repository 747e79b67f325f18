"""Twin of `adcam convert sbd`: same arguments, same exit codes."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "sbd", *sys.argv[1:]]))
