# DeepLab-v2 ResNet-101 on pseudo masks of COCO 2014; 160,000 steps as mmsegmentation's longest
# schedule (schedule_160k.py).
_base_ = [
    "../_base_/coco14.py",
    "../_base_/deeplabv2_r101.py",
    "../_base_/deeplabv2_schedule.py",
]
model = dict(decode_head=dict(num_classes=81))
train = dict(max_iters=160000, val_interval=16000, checkpoint_interval=8000)
test = dict(split="val2014")
