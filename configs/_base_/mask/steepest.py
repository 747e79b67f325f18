# How maps become masks; the threshold was chosen on voc-animals train (docs/results).
mask = dict(
    rule="steepest:0.56",
    chosen_on="voc-animals train, ad_cam at 448",
    crf="none",
)
