# InCA with ResNet-50 on ILSVRC, by the protocol of wsolevaluation.
_base_ = [
    "../_base_/data/ilsvrc_wsol.py",
    "../_base_/model/resnet50_nonlocal.py",
    "../_base_/schedule/wsol_ilsvrc_10e.py",
    "../_base_/inca/full.py",
]
