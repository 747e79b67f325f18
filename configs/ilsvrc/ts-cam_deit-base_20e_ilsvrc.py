# TS-CAM with DeiT-Base on ILSVRC.
_base_ = [
    "../_base_/data/ilsvrc.py",
    "../_base_/model/deit-base.py",
    "../_base_/schedule/ts-cam_ilsvrc_20e.py",
]
