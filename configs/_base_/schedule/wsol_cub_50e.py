# clovaai/wsolevaluation on CUB: SGD with momentum 0.9, weight decay 1e-4, batch 32, 50 epochs, × 0.1
# every 15, new layers at ten times the rate, resized to 256², crops of 224². The rate is searched
# there for each network and method; 0.001 is where to begin.
train = dict(
    epochs=50,
    img_size=224,
    resize=256,
    batch_size=32,
    num_workers=8,
    min_area=1.0,
    jitter=0.0,
    amp="none",
    choose="best",  # on train-fullsup
    seed=0,
)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=1e-3, momentum=0.9, weight_decay=1e-4, nesterov=True),
    paramwise_cfg=dict(
        custom_keys={
            name: dict(lr_mult=10.0) for name in ("network.head", "conv6", "conv7", "attentions")
        }
    ),
)
param_scheduler = [dict(type="StepLR", step_size=15, gamma=0.1)]
