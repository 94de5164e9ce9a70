"""Makes the modules of examples/tinylm importable, as they are for a script there, and those beside this file."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "examples" / "tinylm"), str(HERE)]
