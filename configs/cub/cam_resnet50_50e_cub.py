# Plain CAM: the same network without attention, cross-entropy alone.
_base_ = [
    "../_base_/data/cub_wsol.py",
    "../_base_/model/resnet50_nonlocal.py",
    "../_base_/schedule/wsol_cub_50e.py",
]
model = dict(attention=None)
