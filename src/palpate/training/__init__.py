"""Training: promptable models learn from labelled images, on cached embeddings where the encoder is frozen."""
