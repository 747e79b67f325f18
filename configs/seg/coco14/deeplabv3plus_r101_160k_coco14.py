# DeepLab-v3+ ResNet-101 on pseudo masks of COCO 2014; mmsegmentation's 160k schedule.
_base_ = ["./deeplabv3plus_r50_80k_coco14.py"]
weights = "torchvision:resnet101"
model = dict(backbone=dict(depth=101))
train = dict(max_iters=160000)
