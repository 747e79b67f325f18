# clovaai/wsolevaluation on ILSVRC: 10 epochs, × 0.1 every 3.
_base_ = ["./wsol_cub_50e.py"]
train = dict(epochs=10)
param_scheduler = [dict(type="StepLR", step_size=3, gamma=0.1)]
