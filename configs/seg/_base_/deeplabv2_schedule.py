# DeepLab-v2 (arXiv 1606.00915, sections 4.1 and 4.1.1; prototxt of its release): rate 2.5e-4, ten
# times that for the head, power 0.9, batch 10, 20,000 steps, crops of 321.
_base_ = ["./crops_512.py"]
train = dict(max_iters=20000, batch_size=10, crop_size=(321, 321))
train_pipeline = [
    dict(type="RandomResize", scale=(2048, 375), ratio_range=(0.5, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(321, 321)),
    dict(type="RandomFlip", prob=0.5),
]
test = dict(short_side=None)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=2.5e-4, momentum=0.9, weight_decay=0.0005),
    paramwise_cfg=dict(custom_keys={"decode_head": dict(lr_mult=10.0)}),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False)]
