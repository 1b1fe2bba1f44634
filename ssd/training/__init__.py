"""Training: step, schedule, checkpoints, ranks and what a person sees of it."""
