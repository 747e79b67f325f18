# Images of voc-animals with one kind of animal, its boxes in metadata of wsolevaluation.
# Root: $ADCAM_DATA_ROOT/voc-animals. There is no third split: train chooses, val is reported.
data = dict(
    source="wsol",
    root="{{$ADCAM_DATA_ROOT:data}}/voc-animals",
    metadata="metadata",
    classes=["cat", "cow", "dog", "horse", "sheep"],
    train="train",
    val="val",
    expected_counts=dict(train=429, val=192),
)
