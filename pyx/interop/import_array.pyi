# Reads the protocol of somebody's array, once, and never copies: numpy, DLPack, __cuda_array_interface__, buffers.
from typing import Any

from kvit._native.tensor import Tensor

def view(source: Any, dtype: Any = None, stream: int = 0) -> Tensor: ...
