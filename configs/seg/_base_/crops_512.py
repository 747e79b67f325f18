# Crops, their transforms and the size of testing: mmsegmentation, configs/_base_/datasets/pascal_voc12_aug.py.
train = dict(
    max_iters=20000,
    batch_size=16,  # on one GPU; with n of them give 16 / n
    num_workers=4,
    crop_size=(512, 512),
    amp="bfloat16",
    seed=0,
    val_interval=2000,
    checkpoint_interval=2000,
    log_interval=50,
)
train_pipeline = [
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
]
test = dict(split="val", short_side=512, scales=[1.0], flip=False, crf="none", labels="none")
self_training = dict(rounds=1)  # docs/segmentation.md, Options
