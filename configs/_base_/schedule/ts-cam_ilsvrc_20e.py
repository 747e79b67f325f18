# TS-CAM on ILSVRC (train_val_ilsvrc.sh of vasgaowei/TS-CAM): rate 5e-4 × 0.1 after 10, 12 and 20.
_base_ = ["./ts-cam_cub_60e.py"]
train = dict(epochs=20, batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [dict(type="MultiStepLR", milestones=[10, 12, 20], gamma=0.1)]
