"""A/B experiments and staged rollouts that roll themselves back, with errors under control."""
