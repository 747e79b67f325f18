# ADL (Choe and Shim, CVPR 2019, arXiv 1908.10028) in the places of InCA.
_base_ = ["./inca_resnet50_10e_ilsvrc.py"]
model = dict(attention="channel")
inca = dict(drop_background=False, contrastive=None, consistency_weight=0.0)
