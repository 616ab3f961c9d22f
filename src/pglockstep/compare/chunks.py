"""Where a table is cut, as both ends have it: by samples of both, at boundaries that both sort alike."""

from __future__ import annotations

from pglockstep.compare.pairing import Pairing
from pglockstep.compare.ranges import WHOLE, Range, chunks_of, cut, is_ordered, share_to_sample, sorted_alike
from pglockstep.compare.readings import Reader
from pglockstep.compare.sessions import both


async def chunks(pairing: Pairing, there: Reader, here: Reader) -> list[Range]:
    """The ranges that a table is read in, which no row of either end is outside of. Raises as a `Reader` does."""
    if not is_ordered((pairing.source, pairing.target), pairing.key):
        return [WHOLE]
    readers = (there, here)
    sizes = await both(*(each.size() for each in readers))
    count = chunks_of(sizes)
    if count == 1:
        return [WHOLE]
    samples = await both(
        *(
            each.sample(share_to_sample(size, count), 20 * count)
            for each, size in zip(readers, sizes, strict=True)
        )
    )
    keys = {key for sample in samples for key in sample}
    return cut(sorted_alike(*await both(*(each.sorted(keys) for each in readers))), count)
