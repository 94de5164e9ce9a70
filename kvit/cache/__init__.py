"""The cache that owns its memory: pages, the sequences in them, and attention to those."""
