"""The plugin host: configuration, discovery, compiled hook calls, one request's life, settlements, spans.

Knows nothing of LiteLLM: a ``Gateway`` is given to it.
"""
