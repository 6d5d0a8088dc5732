"""Learning from what people prefer: pairs, rankings and thumbs."""
