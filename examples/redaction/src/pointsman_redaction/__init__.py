"""A plugin that hides personal data from providers."""
