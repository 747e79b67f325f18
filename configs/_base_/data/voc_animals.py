# Six VOC classes; masks keep VOC's values. Root: $ADCAM_DATA_ROOT/voc-animals.
data = dict(
    source="voc",
    root="{{$ADCAM_DATA_ROOT:data}}/voc-animals",
    classes=["cat", "cow", "dog", "horse", "person", "sheep"],
    labels="labels.csv",
    train=["train", "aux"],
    val="val",
)
