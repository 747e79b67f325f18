# TS-CAM with DeiT-Tiny on ILSVRC.
_base_ = [
    "../_base_/data/ilsvrc.py",
    "../_base_/model/deit-tiny.py",
    "../_base_/schedule/ts-cam_ilsvrc_20e.py",
]
