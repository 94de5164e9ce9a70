"""The compiled part of kvit: one class per module. Importing any of them needs no driver and starts no CUDA."""
