# UPerNet with DeiT-Small on pseudo masks of VOC 2012.
_base_ = [
    "../_base_/voc12.py",
    "../_base_/crops_512.py",
    "../_base_/upernet_deit-small.py",
    "../_base_/adamw.py",
]
train = dict(max_iters=40000, val_interval=4000, checkpoint_interval=4000)
