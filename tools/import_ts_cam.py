"""`adcam import` from a checkout; it also reads checkpoints of MCTformer."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main(["import", *sys.argv[1:]]))
