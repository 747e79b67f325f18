# TS-CAM with DeiT-Base at 384 px on CUB. The paper gives no sizes before the crop: 438 is 256 / 224.
_base_ = ["./ts-cam_deit-base_60e_cub.py"]
model = dict(backbone="deit_base_patch16_384", img_size=384)
train = dict(img_size=384, resize=438)
