"""The id every answer carries: the client's own where it sent a sane one, else a fresh one."""

import random
import re

_SANE = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def accept_request_id(given: bytes | None) -> bytes:
    if given is not None and _SANE.fullmatch(given):
        return given
    return b"%032x" % random.getrandbits(128)
