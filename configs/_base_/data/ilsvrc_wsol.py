# ILSVRC with the metadata of clovaai/wsolevaluation: 1,281,167, 10,000 (ImageNetV2) and 50,000 images.
# $ADCAM_DATA_ROOT is a checkout of it, with dataset/ILSVRC and metadata/ILSVRC.
task = "localization"
data = dict(
    source="wsol",
    root="{{$ADCAM_DATA_ROOT:data}}/dataset/ILSVRC",
    metadata="../../metadata/ILSVRC",
    train="train-weaksup",
    val="train-fullsup",
    test="test",
)
