"""Twin of `adcam convert coco`: same arguments, same exit codes."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "coco", *sys.argv[1:]]))
