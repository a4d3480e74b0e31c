"""Plugin `racing`: virtual models and hedged requests; the first good answer wins, within a budget."""
