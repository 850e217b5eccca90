"""Who is asking: API keys, known only by their hashes.

Keys are 256 random bits, so a plain SHA-256 is enough: there is nothing to guess. A key is looked up by
the first bytes of its hash and compared in constant time.
"""

import secrets
from collections.abc import Collection
from hashlib import sha256
from hmac import compare_digest

from gateway.core.errors import Forbidden, Unauthorized

PREFIX = "sk-penstock-"


def new_key() -> tuple[str, str]:
    """A fresh key and the SHA-256 to put under `auth.keys`."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, hash_key(key)


def hash_key(key: str) -> str:
    return sha256(key.encode()).hexdigest()


class Authenticator:
    """`keys` maps the name of a key to its SHA-256 in hex; with none, everybody is let in. `admins`: names of keys
    that may also change what is served."""

    def __init__(self, keys: dict[str, str], admins: Collection[str] = ()) -> None:
        self._admins = frozenset(admins)
        self._by_start: dict[bytes, list[tuple[bytes, str]]] = {}
        for name, hexdigest in keys.items():
            digest = bytes.fromhex(hexdigest)
            self._by_start.setdefault(digest[:4], []).append((digest, name))

    def authenticate(self, authorization: bytes | None) -> str | None:
        """The name of the key in an `Authorization: Bearer` header. Raises Unauthorized (401)."""
        if not self._by_start:
            return None
        if authorization is None:
            raise Unauthorized("An API key is required: send the header 'Authorization: Bearer <key>'.")
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthorized("The Authorization header must be 'Bearer <key>'.")
        digest = sha256(key.strip()).digest()
        for known, name in self._by_start.get(digest[:4], ()):
            if compare_digest(known, digest):
                return name
        raise Unauthorized("The API key is not known here.")

    def authorize_admin(self, authorization: bytes | None) -> str | None:
        """The same for who wants to change what is served. Raises Forbidden (403) for a key that is no admin's."""
        name = self.authenticate(authorization)
        if name is not None and name not in self._admins:
            raise Forbidden(f"The key {name!r} is not an admin's: it needs `admin: true` under auth.keys.{name}.")
        return name
