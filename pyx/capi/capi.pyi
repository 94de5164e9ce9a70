# The table of kvit.h: C functions behind a capsule. C and Cython reach it by kvit_import().
from typing import Any

_C_API: Any
