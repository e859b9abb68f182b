"""Networks, the frame they see, the weights they load."""

DEFAULT = "lite-medsam"
"""The model of the catalogue for whoever names none. It stands here, where importing it costs nothing."""
