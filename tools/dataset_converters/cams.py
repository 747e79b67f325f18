"""Twin of `adcam convert cams`: same arguments, same exit codes."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "cams", *sys.argv[1:]]))
