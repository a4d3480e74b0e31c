"""Every token that was paid for, once: durable events, sinks, prices, reconciliation."""
