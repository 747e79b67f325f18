"""Twin of `adcam convert yolo-to-masks`: same arguments, same exit codes."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "yolo-to-masks", *sys.argv[1:]]))
