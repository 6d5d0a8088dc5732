"""Training: one loop, checkpoints, a learner."""
