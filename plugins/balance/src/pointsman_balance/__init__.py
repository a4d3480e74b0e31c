"""Which deployment serves each attempt: tactics and circuit breakers."""
