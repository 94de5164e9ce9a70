"""kvit's attention, append and gather as operators of PyTorch, for torch.compile and CUDA graphs.

Importing this package registers them as torch.ops.kvit.*. It needs PyTorch (pip install 'kvit[torch]'); `import kvit`
alone imports no PyTorch, and nothing of kvit is compiled against it.
"""

from kvit.ops.kept import words_of_rope as rope_words
from kvit.torch.api import CacheTensors, TableTensors, append, attention, check, clear, gather

__all__ = ["CacheTensors", "TableTensors", "append", "attention", "check", "clear", "gather", "rope_words"]
