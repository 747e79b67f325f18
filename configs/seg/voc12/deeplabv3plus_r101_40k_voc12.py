# DeepLab-v3+ ResNet-101 on pseudo masks of VOC 2012; mmsegmentation's 40k schedule.
_base_ = ["./deeplabv3plus_r50_20k_voc12.py"]
weights = "torchvision:resnet101"
model = dict(backbone=dict(depth=101))
train = dict(max_iters=40000, val_interval=4000, checkpoint_interval=4000)
