"""Which kernel serves a call: what is built (registry), how it is chosen (choose), by which rules for which card."""
