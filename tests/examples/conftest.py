"""Makes the modules of examples/tinylm and examples/llm importable, as for their scripts, and those beside this file.

Both have an evaluate.py: tinylm's is the module of that name.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [*(str(HERE.parents[1] / "examples" / name) for name in ("tinylm", "llm")), str(HERE)]
