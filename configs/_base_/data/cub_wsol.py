# CUB with the metadata of clovaai/wsolevaluation: 5,994, 1,000 (CUBv2) and 5,794 images.
# $ADCAM_DATA_ROOT is a checkout of it, with dataset/CUB and metadata/CUB.
task = "localization"
data = dict(
    source="wsol",
    root="{{$ADCAM_DATA_ROOT:data}}/dataset/CUB",
    metadata="../../metadata/CUB",
    train="train-weaksup",
    val="train-fullsup",
    test="test",
)
