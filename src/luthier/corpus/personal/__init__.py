"""Personal data and secrets in texts: what is found (by type and place), and what is written in its stead."""
