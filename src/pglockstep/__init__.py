"""pglockstep keeps two PostgreSQL databases in lockstep.

It stands between servers that cannot reach each other, carries every committed transaction from a
source to a target exactly once and in order, and proves that both ends are identical.
"""

import os
from importlib.metadata import version

from pglockstep import compiled

__version__ = version("pglockstep")

if os.environ.get(compiled.INTERPRETED):
    compiled.interpret()
