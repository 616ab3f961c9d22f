"""Faults: the network between the daemon and either end is cut, reset, half-open, late, slow or comes and goes."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import Any

import pytest

from fix_faults import SILENCE, Survived, Wired, large_transaction, under_way, writing
from fix_proxy import Proxy
from fix_servers import connect, wait_until

pytestmark = pytest.mark.unguarded

on_each_end = pytest.mark.parametrize("end", ["source", "target"])

#: What a person may have to wait for the daemon to see that an end is gone, in seconds: the silence, and a busy machine.
NOTICED = SILENCE + 12


def demand_unhealthy(status: dict[str, Any], end: str) -> None:
    """What ``status`` says while an end is gone: that it waits, for whom, and nothing that sounds level."""
    assert (status["state"], status["code"]) == ("waiting", 1)
    assert end in status["reason"]
    assert not status[end]["reachable"]
    assert status[end]["error"]
    assert status["lag_seconds"] is None or status["lag_seconds"] > 0


def connected_anew(proxy: Proxy, before: int) -> bool:
    """Whether more connections were let in than before."""
    return proxy.accepted > before


@on_each_end
@pytest.mark.parametrize("how", ["cut", pytest.param("reset", marks=pytest.mark.soak)])
def test_connections_are_cut(wired: Wired, survived: Survived, end: str, how: str) -> None:
    """All connections to an end end, in order or broken off, again and again: the link connects anew by itself."""
    link, proxy = wired.link, wired[end]
    link.start()
    with writing(link.pair.source):
        for _ in range(3):
            before = proxy.accepted
            getattr(proxy, how)()
            wait_until(partial(connected_anew, proxy, before), 20, "the daemon to connect anew")
            link.level()
    link.becomes("streaming")
    link.proven()
    survived(f"network to the {end}: {how}", 3)


@pytest.mark.soak
@on_each_end
def test_an_end_that_refuses_connections(wired: Wired, survived: Survived, end: str) -> None:
    """As long as an end cannot be connected to, status says so; then the link goes on by itself."""
    link, proxy = wired.link, wired[end]
    link.start()
    with writing(link.pair.source):
        proxy.refuse()
        proxy.reset()
        demand_unhealthy(link.becomes("waiting", within=NOTICED), end)
        proxy.restore()
        link.becomes("streaming")
    link.level()
    link.proven()
    survived(f"network to the {end}: refused")


@on_each_end
def test_half_open(wired: Wired, survived: Survived, end: str) -> None:
    """An end whose network swallows everything: noticed by its silence alone, told, and gone on from by itself."""
    link, proxy = wired.link, wired[end]
    link.start()
    with writing(link.pair.source):
        link.level()
        proxy.silence()
        began = time.monotonic()
        wait_until(lambda: "has been silent for 3 s" in link.said, NOTICED, "the silence to be noticed")
        noticed = time.monotonic() - began
        demand_unhealthy(link.becomes("waiting", within=NOTICED), end)
        proxy.restore()
        link.becomes("streaming")
        link.level()
    link.proven()
    survived(f"network to the {end}: half-open")
    assert noticed < NOTICED


@pytest.mark.soak
@on_each_end
def test_half_open_while_nothing_is_written(wired: Wired, survived: Survived, end: str) -> None:
    """Also where there is nothing to send the silence of an end is noticed."""
    link, proxy = wired.link, wired[end]
    link.start()
    link.level()
    proxy.silence()
    wait_until(lambda: "has been silent for 3 s" in link.said, NOTICED + 5, "the silence to be noticed")
    demand_unhealthy(link.becomes("waiting", within=NOTICED), end)
    proxy.restore()
    link.level()
    link.proven()
    survived(f"network to the {end}: half-open, idle")


@pytest.mark.soak
@on_each_end
@pytest.mark.parametrize("way", [0.1, 0.2])
def test_200_ms_late(wired: Wired, survived: Survived, end: str, way: float) -> None:
    """Every byte takes 200 ms there and back, or one way: the link follows, later, and is healthy."""
    link, proxy = wired.link, wired[end]
    proxy.latency = way
    link.start()
    with writing(link.pair.source):
        link.level()
        time.sleep(2)
    link.level()
    assert link.becomes("streaming")["code"] == 0
    proxy.restore()
    link.proven()
    survived(f"network to the {end}: 200 ms late")


@pytest.mark.soak
@on_each_end
def test_slow(wired: Wired, survived: Survived, end: str) -> None:
    """A line of 300 kB a second and a transaction of megabytes: it takes its time, and nobody takes that for silence."""
    link, proxy = wired.link, wired[end]
    link.start()
    proxy.rate = 300_000
    began = time.monotonic()
    large_transaction(link.pair.source, 3)
    link.level()
    assert time.monotonic() - began > SILENCE
    assert "silent" not in link.said
    proxy.restore()
    link.proven()
    survived(f"network to the {end}: slow")


@pytest.mark.soak
@on_each_end
def test_flapping(wired: Wired, survived: Survived, end: str) -> None:
    """A network that comes and goes at any moment, with every way of being gone: in the end nothing is missing."""
    link, proxy = wired.link, wired[end]
    chance, times = random.Random(0), 60
    link.start()
    with writing(link.pair.source):
        large_transaction(link.pair.source, 5)
        for _ in range(times):
            time.sleep(chance.uniform(0.0, 0.8))
            way = chance.choice([proxy.cut, proxy.reset, proxy.refuse, proxy.silence])
            way()
            if way == proxy.refuse:
                proxy.reset()
            time.sleep(chance.uniform(0.0, 0.8))
            proxy.restore()
            link.demand_alive()
    link.becomes("streaming", within=90)
    link.level()
    link.proven()
    survived(f"network to the {end}: flapping", times)


@pytest.mark.soak
@on_each_end
@pytest.mark.parametrize("megabytes", [8, 50])
@pytest.mark.parametrize("how", ["cut", "reset", "silence"])
def test_in_the_middle_of_a_large_transaction(
    wired: Wired, survived: Survived, end: str, how: str, megabytes: int
) -> None:
    """A large transaction is under way when an end is lost: nobody sees a part of it, and it arrives once."""
    link, proxy = wired.link, wired[end]
    link.start()
    # so slowly that it is still being received while it is being applied
    wired.source.rate = megabytes << 18
    with under_way(link, megabytes):
        getattr(proxy, how)()
    if how == "silence":
        link.becomes("waiting", within=NOTICED)
    proxy.restore()
    wired.source.restore()
    link.becomes("streaming", within=90)
    link.level()
    with connect(link.pair.target) as target:
        assert target.execute("SELECT count(*), sum(id) FROM bulk").fetchone() == (
            megabytes * 500,
            sum(range(1, megabytes * 500 + 1)),
        )
    link.proven()
    survived(f"network to the {end}: {how} in a large transaction")
