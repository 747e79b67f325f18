# InCA with VGG16 on CUB, by the protocol of wsolevaluation.
_base_ = [
    "../_base_/data/cub_wsol.py",
    "../_base_/model/vgg16_nonlocal.py",
    "../_base_/schedule/wsol_cub_50e.py",
    "../_base_/inca/full.py",
]
