# InCA with InceptionV3 on ILSVRC, by the protocol of wsolevaluation.
_base_ = [
    "../_base_/data/ilsvrc_wsol.py",
    "../_base_/model/inceptionv3_nonlocal.py",
    "../_base_/schedule/wsol_ilsvrc_10e.py",
    "../_base_/inca/full.py",
]
