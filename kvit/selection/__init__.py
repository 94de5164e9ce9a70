"""Which kernel serves a call: what was built (registry), how it is chosen (choose), what cards can do (cards)."""
