"""Ends a tritonserver that has lost the process of one of its Python models: `watch.py MODEL_READY_URL`, as its child.

tritonserver itself goes on: the model says it is ready for ever, answers "Stub process is not healthy" for ever, and
streams that were open hang. Ended, it is started again by whoever keeps it (`penstock up`, a container's supervisor),
and open streams break at once. Standard library only, a program of its own, because the launcher becomes the server.
"""

import ctypes
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # prctl(2): it ends with its parent, the server
_EVERY_S = 1.0
_EVERY_S_AT_START = 0.1
_STUB = b"triton_python_backend_stub"


def main() -> int:
    """Returns when the server has ended, or has been ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    server, url = os.getppid(), sys.argv[1]
    whole = _stubs_at_start(server, url)
    missing: set[str] = set()
    while os.getppid() == server:
        time.sleep(_EVERY_S)
        now = _stubs(server)
        # An orderly end stops HTTP first, and an unloaded model is not ready: whoever still says it is, is broken.
        lost = {model for model in whole if now[model] < whole[model] and _is_ready(f"{url}/v2/models/{model}/ready")}
        if broken := lost & missing:
            sys.stderr.write(f"the process of model {min(broken)} is gone (out of memory?): ending tritonserver\n")
            os.kill(server, signal.SIGKILL)
            return 1
        missing = lost
    return 0


def _stubs_at_start(server: int, url: str) -> Counter[str]:
    """Waits until the server is ready; counted while models load, because one may be lost the moment after."""
    whole: Counter[str] = Counter()
    ready = False
    while os.getppid() == server and not ready:
        time.sleep(_EVERY_S_AT_START)
        ready = _is_ready(f"{url}/v2/health/ready")
        whole |= _stubs(server)
    return whole


def _stubs(server: int) -> Counter[str]:
    """Living processes of each Python model."""
    return Counter(model for entry in Path("/proc").glob("[0-9]*") if (model := _model_of(entry, server)))


def _model_of(entry: Path, server: int) -> str | None:
    """The model whose stub this process is; its arguments are the stub's path and REPOSITORY/MODEL/1/model.py."""
    try:
        fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
        program, _, rest = (entry / "cmdline").read_bytes().partition(b"\0")
    except OSError:
        return None
    if int(fields[1]) != server or not program.endswith(_STUB):
        return None
    return Path(rest.partition(b"\0")[0].decode()).parents[1].name


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


if __name__ == "__main__":
    sys.exit(main())
