"""Twin of `adcam convert coco-to-masks`: same arguments, same exit codes."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "coco-to-masks", *sys.argv[1:]]))
