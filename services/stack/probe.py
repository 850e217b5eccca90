"""One HTTP GET for readiness; apart and by hand so that the stack needs no HTTP client library."""

import asyncio

_MAX_HEAD_BYTES = 65536


async def http_status(host: str, port: int, path: str, timeout_s: float = 5.0) -> int | None:
    """The status code of GET http://host:port/path, None when nobody answers in HTTP within `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _get(host, port, path)
    except (OSError, TimeoutError, ValueError, IndexError, asyncio.LimitOverrunError):
        return None


async def _get(host: str, port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection(host, port, limit=_MAX_HEAD_BYTES)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        status_line = await reader.readline()
        return int(status_line.split()[1])
    finally:
        writer.transport.abort()
