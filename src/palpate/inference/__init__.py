"""One image, many prompts."""
