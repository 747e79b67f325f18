# TS-CAM with DeiT-Small on CUB.
_base_ = [
    "../_base_/data/cub.py",
    "../_base_/model/deit-small.py",
    "../_base_/schedule/ts-cam_cub_60e.py",
]
