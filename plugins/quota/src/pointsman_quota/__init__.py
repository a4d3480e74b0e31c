"""Quota: who may call, how much, and what is left."""
