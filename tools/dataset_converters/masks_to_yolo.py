"""Twin of `adcam convert masks-to-yolo`: same arguments, same exit codes."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "masks-to-yolo", *sys.argv[1:]]))
