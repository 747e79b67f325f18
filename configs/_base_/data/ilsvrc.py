# ILSVRC 2012, CLS-LOC: 1,281,167 for training, 50,000 with boxes for the test. As for CUB there are
# no images to choose an epoch on. Root: $ADCAM_DATA_ROOT/ILSVRC, the folder that holds ImageSets.
task = "localization"
data = dict(
    source="ilsvrc",
    root="{{$ADCAM_DATA_ROOT:data}}/ILSVRC",
    train="train",
    val="val",
    test="val",
)
