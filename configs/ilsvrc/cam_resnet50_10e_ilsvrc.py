# Plain CAM: the same network without attention, cross-entropy alone.
_base_ = [
    "../_base_/data/ilsvrc_wsol.py",
    "../_base_/model/resnet50_nonlocal.py",
    "../_base_/schedule/wsol_ilsvrc_10e.py",
]
model = dict(attention=None)
