# MCTformer's schedule (Xu et al., CVPR 2022, arXiv 2203.02891): 60 epochs, batch 64, AdamW at
# 5e-4 × batch / 512, weight decay 0.05, cosine, 5 epochs of warm-up.
_base_ = ["./classifier_10e.py"]
train = dict(epochs=60, batch_size=64, num_workers=8)
optim_wrapper = dict(optimizer=dict(lr=6.25e-5))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, convert_to_iter_based=True),
]
