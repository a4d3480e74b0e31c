"""Live requests mirrored to a challenger, compared, and never noticed by the caller."""
