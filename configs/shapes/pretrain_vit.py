# Weights of `adcam demo` (adcam/assets/shapes_vit.safetensors), made by
#   python tools/pretrain_shapes.py configs/shapes/pretrain_vit.py --out adcam/assets/shapes_vit.safetensors
seed = 0
data = dict(size_hw=(96, 96), num_images=12000, seed=1000)
corrupt = dict(clean_share=0.6, hidden=0.4, offset=0.5, noise=0.3)
loss_weights = [1.0, 1.0, 0.5, 1.0]  # restore patches; class token: classes, coats; class maps
optim = dict(
    lr=1e-3, weight_decay=0.03, batch_size=32, num_steps=3500, warmup_steps=100, bfloat16=True
)
