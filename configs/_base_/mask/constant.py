# How maps become masks; the threshold was chosen on voc-animals train.
mask = dict(rule="constant:0.4", crf="none", crf_params="irn")
