# UPerNet (Xiao et al., ECCV 2018, arXiv 1807.10221) on DeiT-Small, as mmsegmentation's
# _base_/models/upernet_vit-b16_ln_mln.py puts it on ViT-B: four depths, scaled to a pyramid.
weights = "{{$ADCAM_WEIGHTS:timm}}"  # a file, e.g. classifier.safetensors; "timm": looked up
norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type="TimmViT",
        name="deit_small_patch16_224",
        img_size=512,
        out_indices=(2, 5, 8, 11),
        norm=False,
        drop_path_rate=0.1,
    ),
    neck=dict(
        type="MultiLevelNeck",
        in_channels=[384, 384, 384, 384],
        out_channels=384,
        scales=[4, 2, 1, 0.5],
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels=[384, 384, 384, 384],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="ConfidenceCrossEntropy"),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=384,
        in_index=3,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="ConfidenceCrossEntropy", loss_weight=0.4),
    ),
    test_cfg=dict(mode="whole"),
)
