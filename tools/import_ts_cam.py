"""Turn a checkpoint of vasgaowei/TS-CAM into a classifier that `adcam` reads.

    python tools/import_ts_cam.py configs/cub/ts-cam_deit-small_60e_cub.py model_best.pth \\
        classifier.safetensors

The names of the classes come from the data set of the config, which must be there.
"""

from __future__ import annotations

import sys

from adcam.settings import load_settings
from adcam.training.classifier import import_ts_cam

if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"{__doc__}\nexpected CONFIG CHECKPOINT OUT, got {sys.argv[1:]}")
    try:
        import_ts_cam(load_settings(sys.argv[1]), sys.argv[2], sys.argv[3])
    except ValueError as error:
        sys.exit(f"error: {error}")
