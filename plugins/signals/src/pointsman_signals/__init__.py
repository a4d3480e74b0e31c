"""Pointsman plugin ``signals``: the state of every deployment, from response headers, traffic and checks."""
