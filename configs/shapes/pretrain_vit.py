# Weights of `adcam demo` (adcam/assets/shapes_vit.safetensors), made by
#   python tools/pretrain_shapes.py configs/shapes/pretrain_vit.py --out adcam/assets/shapes_vit.safetensors
seed = 0
model = dict(img_size=96, patch_size=8, embed_dim=128, depth=6, num_heads=4, mlp_ratio=2)
init = dict(
    structured=True,
    colour_gain=4.0,
    position_gain=0.7,
    similarity_gain=3.0,
    mixing_gain=0.3,
)
data = dict(size_hw=(96, 96), num_images=12000, seed=1000)
corrupt = dict(hidden=0.4, offset=0.5, noise=0.3)
loss_weights = [1.0, 1.0, 1.0]  # restore patches, tell classes, tell coats
optim = dict(
    lr=1e-3, weight_decay=0.03, batch_size=32, num_steps=1000, warmup_steps=100, bfloat16=True
)
