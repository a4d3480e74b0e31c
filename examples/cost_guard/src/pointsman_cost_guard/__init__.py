"""A plugin that spends less when little is left."""
