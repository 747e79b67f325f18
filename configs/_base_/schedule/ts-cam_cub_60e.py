# TS-CAM on CUB (Gao et al., ICCV 2021, arXiv 2103.14862; train_val_cub.sh of vasgaowei/TS-CAM):
# AdamW, rate 5e-5 × 0.1 after epochs 30 and 60, no warm-up; images resized to 256², crops of 224².
train = dict(
    epochs=60,
    img_size=224,
    resize=256,
    batch_size=128,
    num_workers=8,
    min_area=1.0,
    jitter=0.0,
    amp="none",
    choose="last",  # the authors take the epoch that is best on the test: "best"
    seed=26,
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=5e-5, weight_decay=0.05))
param_scheduler = [dict(type="MultiStepLR", milestones=[30, 60], gamma=0.1)]
