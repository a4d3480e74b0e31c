"""A plugin that answers what has been asked before."""
