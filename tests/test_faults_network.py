"""Faults: the network between the daemon and either end is cut, reset, half-open, late, slow or comes and goes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from fix_faults import SILENCE, Survived, Wired, under_way, writing
from fix_servers import connect, wait_until

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


@on_each_end
@pytest.mark.parametrize("how", ["cut", "reset"])
def test_connections_are_cut(wired: Wired, survived: Survived, end: str, how: str) -> None:
    """All connections to an end end, in order or broken off, again and again: the link connects anew by itself."""
    link, proxy = wired.link, wired[end]
    link.start()
    with writing(link.pair.source):
        for _ in range(3):
            before = proxy.accepted
            getattr(proxy, how)()
            wait_until(lambda was=before: proxy.accepted > was, 20, "the daemon to connect anew")
            link.level()
    link.becomes("streaming")
    link.proven()
    survived(f"network to the {end}: {how}", 3)


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


@on_each_end
def test_200_ms_late(wired: Wired, survived: Survived, end: str) -> None:
    """Every byte takes 200 ms: the link follows, later, and is healthy."""
    link, proxy = wired.link, wired[end]
    proxy.latency = 0.2
    link.start()
    with writing(link.pair.source):
        link.level()
        time.sleep(2)
    link.level()
    assert link.becomes("streaming")["code"] == 0
    proxy.restore()
    link.proven()
    survived(f"network to the {end}: 200 ms late")
