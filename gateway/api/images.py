"""Image parts of prompts: what may go to an engine, and what must not make it fetch anything.

An engine that is given a URL fetches it from inside the network it stands in. So `data:` URLs are the rule, and other
URLs are refused but for https and http of hosts the operator named, whose addresses are all public. Nothing is fetched
and no picture is decoded here: size, media type and the first bytes are looked at.

A long chat whose messages hold nothing but strings passes by (`Call.is_text`). `may_hold_media` is the next cheap
test: all media parts of all three protocols (chat `image_url`, Responses `input_image`, Messages `image`) carry a
member whose name ends in `_url`, or a `source`; tensors in the place of media (`image_embeds`: an engine unpickles
them) one that ends in `_embeds`.
"""

import asyncio
import binascii
import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from gateway.core.call import Call, Endpoint
from gateway.core.errors import InvalidRequest
from gateway.core.raw import decode_field

_MAGIC = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
}
_HEADER_CHARS = 32  # 24 bytes: more than any of the signatures


def may_hold_media(body: bytes) -> bool:
    """False for prompts of text alone, but for a few that mention such a name. `\\u00` may spell any letter of it."""
    return b'_url"' in body or b'"source"' in body or b'_embeds"' in body or b"\\u00" in body


@dataclass(frozen=True, slots=True)
class Found:
    """One image: `where` it is, as a client would say it, and its URL."""

    where: str
    url: str


@dataclass(frozen=True, slots=True)
class Images:
    """Checks the images of a prompt. `hosts`: from which engines may fetch them; none by default."""

    limit_bytes: int = 10 * 2**20
    per_request: int = 16
    media_types: frozenset[str] = frozenset(_MAGIC)
    hosts: frozenset[str] = field(default_factory=frozenset)

    async def check_chat(self, call: Call) -> None:
        """For doors that make chat calls of what their clients send."""
        if call.endpoint is Endpoint.CHAT and not call.is_text and may_hold_media(call.body):
            await self.check(call, "messages")

    async def check(self, call: Call, name: str) -> None:
        """Sets `call.images`. `name`: the field that holds the prompt. Raises InvalidRequest that says where."""
        raw = call.fields.get(name)
        if raw is None or not may_hold_media(bytes(raw)):
            return
        found = list(find(decode_field(name, raw), name))
        if len(found) > self.per_request:
            raise _refused(name, f"{len(found)} images are more than the {self.per_request} a request may have")
        for image in found:
            await self._check_one(image)
        call.images = len(found)

    async def _check_one(self, image: Found) -> None:
        scheme = image.url.partition(":")[0].lower()
        if scheme == "data":
            self._check_data(image)
        elif scheme in ("http", "https"):
            await self._check_remote(image)
        else:
            raise _refused(image.where, "only data: URLs, and http(s) URLs of hosts this gateway allows, are taken")

    def _check_data(self, image: Found) -> None:
        """RFC 2397, base64 only."""
        head, _, data = image.url[5:].partition(",")
        media_type, _, encoding = head.partition(";")
        if encoding.lower() != "base64":
            raise _refused(image.where, "a data: URL must be 'data:<media type>;base64,<data>'")
        if media_type not in self.media_types:
            allowed = ", ".join(sorted(self.media_types))
            raise _refused(image.where, f"the media type {media_type[:64]!r} is not one of {allowed}")
        if len(data) * 3 // 4 > self.limit_bytes:
            raise _refused(image.where, f"the image is larger than {self.limit_bytes} bytes")
        try:
            start = binascii.a2b_base64(data[:_HEADER_CHARS], strict_mode=True)
        except (binascii.Error, ValueError):
            raise _refused(image.where, "the data is not base64") from None
        if not start.startswith(_MAGIC[media_type]) or (media_type == "image/webp" and start[8:12] != b"WEBP"):
            raise _refused(image.where, f"the data is not of the media type {media_type}")

    async def _check_remote(self, image: Found) -> None:
        try:
            parts = urlsplit(image.url)
            host, port = (parts.hostname or "").rstrip("."), parts.port or 443
        except ValueError:
            raise _refused(image.where, "the URL cannot be read") from None
        if parts.username is not None or "\\" in image.url or not image.url.isprintable():
            raise _refused(image.where, "the URL must hold no credentials, backslashes or control characters")
        if host not in self.hosts:
            raise _refused(
                image.where, f"the host {host[:253]!r} is not one this gateway allows; send the image as a data: URL"
            )
        addresses = await _addresses(host, port)
        if not addresses or any(not _is_public(address) for address in addresses):
            raise _refused(image.where, f"the host {host!r} has no address, or one that is not public")


def find(prompt: Any, where: str) -> Iterator[Found]:
    """Every image of a decoded prompt. Raises InvalidRequest for media parts other than images."""
    if isinstance(prompt, list):
        for index, one in enumerate(prompt):
            yield from find(one, f"{where}[{index}]")
    elif isinstance(prompt, dict):
        yield from _in_part(prompt, where)
        for name in ("content", "output"):
            yield from find(prompt.get(name), f"{where}.{name}")


def _in_part(part: dict[str, Any], where: str) -> Iterator[Found]:
    for name, value in part.items():
        if name == "image_url":
            url = value.get("url") if isinstance(value, dict) else value
            yield Found(where, _text(url, where))
        elif name.endswith(("_url", "_embeds")) and value is not None:
            raise _refused(where, f"{name!r} is not supported: of media, only images are")
    if isinstance(part.get("file_id"), str):
        raise _refused(where, "'file_id' is not supported: this gateway keeps no files; send a data: URL")
    source = part.get("source")
    if isinstance(source, dict) and part.get("type") in ("image", "document"):
        yield _of_source(part, source, where)


def _of_source(part: dict[str, Any], source: dict[str, Any], where: str) -> Found:
    if part["type"] != "image":
        raise _refused(where, f"a block of type {part['type']!r} is not supported: of media, only images are")
    if source.get("type") == "base64":
        return Found(where, f"data:{source.get('media_type')};base64,{_text(source.get('data'), where)}")
    if source.get("type") == "url":
        return Found(where, _text(source.get("url"), where))
    raise _refused(where, "the image's source must be of type 'base64' or 'url'")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _refused(where, "the image has no URL")
    return value


async def _addresses(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(address[4][0]) for address in found]


def _is_public(address: str) -> bool:
    """Also of the IPv4 address that an IPv6 one may carry inside."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return _is_public(str(inner))
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            return _is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast


def _refused(where: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{where}: {reason}.", param=where, code="invalid_image")
