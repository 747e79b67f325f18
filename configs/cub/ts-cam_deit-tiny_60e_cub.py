# TS-CAM with DeiT-Tiny on CUB.
_base_ = [
    "../_base_/data/cub.py",
    "../_base_/model/deit-tiny.py",
    "../_base_/schedule/ts-cam_cub_60e.py",
]
