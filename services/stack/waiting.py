"""Waiting for one thing but no longer than until another; apart because asyncio leaves such corners to the caller."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """Asked to stop while still waiting for something else."""


async def unless_stopped(stop: asyncio.Event, work: Awaitable[T]) -> T:
    """The result of `work`, or Stopped as soon as `stop` is set; `work` is then cancelled and seen to its end."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Stopped
        return task.result()
    finally:
        stopping.cancel()
        await abandon(task)


async def unless_failed(other: asyncio.Task[None], work: Awaitable[None]) -> None:
    """Wait for `work`, but no longer than until `other` fails; then that is raised."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, other}, return_when=asyncio.FIRST_COMPLETED)
        if other.done():
            other.result()
        await task
    finally:
        await abandon(task)


async def abandon(task: asyncio.Future[Any]) -> None:
    """Cancel what is still going on and see it end; what it would have raised no longer matters."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
