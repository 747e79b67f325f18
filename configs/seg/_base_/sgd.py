# mmsegmentation, configs/_base_/schedules/schedule_20k.py, _40k, _80k, _160k: SGD 0.01, polynomial
# decay of power 0.9 to 1e-4.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0005),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-4, by_epoch=False)]
