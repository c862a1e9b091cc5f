"""A doorbell, and an epoll that hears it."""

from __future__ import annotations

import contextlib
import select

import pytest

from vqshm.notify import EventFd


@pytest.fixture
def bell():
    with EventFd.create() as made:
        yield made


@pytest.fixture
def epoll(bell):
    with contextlib.closing(select.epoll()) as made:
        made.register(bell.fileno(), select.EPOLLIN)
        yield made
