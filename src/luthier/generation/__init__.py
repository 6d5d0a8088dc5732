"""Generation: decoding many prompts together, greedily or by sampling."""
