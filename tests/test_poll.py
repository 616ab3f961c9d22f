"""Poll mode: a source on which the link may only SELECT is kept level by comparing, through the journal and the guard."""

from __future__ import annotations

from fix_polled import polled
from fix_servers import Cli, Pair, on_all_pairs


@on_all_pairs
def test_once(pair: Pair, cli: Cli) -> None:
    """The first copy, what changes afterwards, and nothing on the source."""
    with polled(cli, pair) as link:
        assert link.once()["copied_rows"] > 8000
        link.demand_untouched()
        link.write(
            """INSERT INTO "Artist" VALUES (1000, 'New'), (1001, NULL)""",
            """UPDATE "Track" SET "UnitPrice" = 1.29, "Name" = 'x' || "Name" WHERE "TrackId" % 7 = 0""",
            """DELETE FROM "PlaylistTrack" WHERE "TrackId" % 11 = 0""",
            """INSERT INTO "Play" SELECT 5, '2024-01-01', '{"a": 2, "b": 1}' FROM generate_series(1, 3)""",
            """DELETE FROM "Play" WHERE ctid IN (SELECT min(ctid) FROM "Play" WHERE "TrackId" = 3)""",
            """SELECT nextval('"Track_TrackId_seq"') FROM generate_series(1, 20)""",
        )
        link.check("different")
        found = link.once()
        assert found["copied_rows"] == 0
        assert link.same()
        link.check()
        link.demand_untouched()
