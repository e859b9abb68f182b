"""How good is a model on these images, and what happens when the prompt is not perfect?"""
