"""What a person tells the model."""

from palpate.prompts.types import Box, MaskPrompt, Points, Prompt, Scribble, Target

__all__ = ["Box", "MaskPrompt", "Points", "Prompt", "Scribble", "Target"]
