"""The right local models in memory: loaded, evicted and kept by what is asked for, within a budget of bytes."""
