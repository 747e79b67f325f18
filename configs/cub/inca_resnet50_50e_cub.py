# InCA with ResNet-50 on CUB, by the protocol of wsolevaluation.
_base_ = [
    "../_base_/data/cub_wsol.py",
    "../_base_/model/resnet50_nonlocal.py",
    "../_base_/schedule/wsol_cub_50e.py",
    "../_base_/inca/full.py",
]
