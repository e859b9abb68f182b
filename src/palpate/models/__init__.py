"""Networks, the frame they see, the weights they load."""
