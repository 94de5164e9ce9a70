"""kvit's attention, append and gather inside jax.jit, as custom calls that XLA makes from its own threads.

Importing this package registers the calls. It needs JAX (pip install 'kvit[jax]'); `import kvit` alone imports no JAX,
and nothing of kvit is compiled against it.
"""

from kvit.jax.api import CacheArrays, TableArrays, append, attention, check, clear, gather
from kvit.ops.kept import words_of_rope as rope_words

__all__ = ["CacheArrays", "TableArrays", "append", "attention", "check", "clear", "gather", "rope_words"]
