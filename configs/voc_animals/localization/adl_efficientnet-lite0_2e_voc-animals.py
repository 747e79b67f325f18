# ADL (Choe and Shim, CVPR 2019, arXiv 1908.10028) behind the last layer: behind earlier ones it spoils
# the batch statistics of so short a training.
_base_ = ["./cam_efficientnet-lite0_2e_voc-animals.py"]
inca = dict(
    layers=(2,),
    drop_threshold=0.8,
    drop_rate=0.75,
    drop_background=False,
    contrastive=None,
    consistency_weight=0.0,
)
