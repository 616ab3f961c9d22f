"""Run by the Python that has data-diff: compares the tables it is told of, and writes how many rows of each differ.

Takes one JSON document as its argument; exits with 1 if anything differs. Knows nothing of the rest of this package.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import data_diff


def main(job: dict[str, Any]) -> int:
    """One table after another, over the same connections."""
    # that it has no special treatment for text is no news
    logging.disable(logging.WARNING)
    data_diff.disable_tracking()
    threads = job["threads"]
    # held, so that they are not closed and opened again between two tables
    ends = [data_diff.connect(end, thread_count=threads) for end in job["ends"]]
    found: dict[str, int] = {}
    for table, key, columns in job["tables"]:
        pair = [
            data_diff.TableSegment(end, ("public", table), (key,), extra_columns=tuple(columns))
            for end in ends
        ]
        # its command, too, takes twice as many threads for both ends together
        found[table] = sum(
            1
            for _ in data_diff.diff_tables(
                *pair, threaded=True, max_threadpool_size=2 * threads, bisection_factor=job["factor"]
            )
        )
    print(json.dumps(found))
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
