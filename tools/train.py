"""Train a classifier: the same as ``adcam train``, where users of mmengine look for it."""

import sys

from adcam.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
