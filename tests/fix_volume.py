"""A source on a server of its own, whose volume is lost, put back as it was, or swapped: what only a file system can do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fix_servers import Cli, Pair, Servers, connect, majors, wait_until
from fix_shop import Shop
from pglockstep.demo.servers import ThrowawayServer


class Volume:
    """The data directory of a server."""

    def __init__(self, server: ThrowawayServer) -> None:
        self.server = server
        self._kept = Path(f"{server.data}.kept")

    def lose(self) -> None:
        """An empty server answers at the same address from now on."""
        self.server.stop("immediate")
        shutil.rmtree(self.server.data)
        self.server.start()

    def keep(self) -> None:
        """A copy of the stopped data directory."""
        self.server.stop()
        shutil.rmtree(self._kept, ignore_errors=True)
        _copied(self.server.data, self._kept)
        self.server.start()

    def put_back(self) -> None:
        """The copy takes the place of what is there."""
        self.server.stop()
        shutil.rmtree(self.server.data)
        _copied(self._kept, self.server.data)
        self.server.start()

    def promote(self) -> None:
        """The server comes back as a standby that was promoted: with all its WAL, and on a new timeline."""
        self.server.stop()
        signal = self.server.data / "standby.signal"
        signal.touch()
        self.server.user.owns(signal)
        self.server.start()
        with connect(self.server.conninfo()) as conn:
            assert conn.execute("SELECT pg_promote()").fetchone() == (True,)
            wait_until(
                lambda: conn.execute("SELECT pg_is_in_recovery()").fetchone() == (False,), 20, "the promotion"
            )


def _copied(tree: Path, to: Path) -> None:
    shutil.copytree(tree, to, symlinks=True)
    owner = tree.stat()
    for each in (to, *to.rglob("*")):
        shutil.chown(each, owner.st_uid, owner.st_gid)


@pytest.fixture(scope="module")
def volume(servers: Servers) -> Iterator[Volume]:
    """A server of the newest version that the module's tests share."""
    with ThrowawayServer(servers.source(majors[-1]).installation, name="volume") as server:
        yield Volume(server)


@pytest.fixture
def stranded(cli: Cli, pair: Pair, volume: Volume) -> Shop:
    """A shop on the volume, copied to the pair's target."""
    name = "shop"
    with connect(volume.server.conninfo()) as conn:
        conn.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")
        conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
        conn.execute(f"CREATE DATABASE {name}".encode())
    shop = Shop(cli, Pair(volume.server.conninfo(name), pair.target, volume.server, pair.target_server))
    shop.once()
    return shop


def decided(shop: Shop, verb: str, *args: str) -> dict[str, object]:
    """Decide the incident that waits; it is carried out."""
    incident = shop.held()
    done = shop.command("incidents", verb, str(incident["id"]), *args, "--yes")
    found = done["incidents"][0]
    assert isinstance(found, dict)
    return found


def identical(shop: Shop) -> None:
    """The ends are identical."""

    def found() -> bool:
        return bool(shop.command("check")["links"][0]["verdict"] == "identical")

    wait_until(found, 20, "both ends to be identical")
