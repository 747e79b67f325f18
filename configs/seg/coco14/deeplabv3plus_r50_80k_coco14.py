# DeepLab-v3+ ResNet-50 on pseudo masks of COCO 2014; mmsegmentation's 80k schedule.
_base_ = [
    "../_base_/coco14.py",
    "../_base_/crops_512.py",
    "../_base_/deeplabv3plus_r50.py",
    "../_base_/sgd.py",
]
model = dict(decode_head=dict(num_classes=81), auxiliary_head=dict(num_classes=81))
train = dict(max_iters=80000, val_interval=16000, checkpoint_interval=8000)
test = dict(split="val2014")
