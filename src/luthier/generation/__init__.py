"""Generation: decoding many prompts together."""
