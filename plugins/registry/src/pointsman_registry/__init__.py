"""Versions of a model: clients call a name, the gateway serves the active version."""
