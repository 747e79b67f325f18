# InCA with VGG16 on ILSVRC, by the protocol of wsolevaluation.
_base_ = [
    "../_base_/data/ilsvrc_wsol.py",
    "../_base_/model/vgg16_nonlocal.py",
    "../_base_/schedule/wsol_ilsvrc_10e.py",
    "../_base_/inca/full.py",
]
