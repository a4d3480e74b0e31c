"""Models that rest at certain hours."""
