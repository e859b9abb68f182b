"""What one encoder of stage 1 must not learn from, so that it is judged on kinds of images that it never saw."""

UNSEEN = ("acdc_cardiac_mr", "ccaus_carotid_us", "curvas_abdomen_ct", "kvasir_seg_polyp", "spider_lumbar_mr_2d")
"""Data sets that `half-unseen` does not learn from."""
