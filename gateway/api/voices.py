"""An error in the words of the protocol that is spoken at a path.

For what fails outside of any door: requests that are too large or no HTTP, unknown paths, wrong methods.
"""

from gateway.api.errors import error_body
from gateway.api.kserve import kserve_error
from gateway.api.messages_answer import message_error
from gateway.core.errors import PenstockError


def error_at(path: str, error: PenstockError, request_id: str) -> bytes:
    """OpenAI's, unless the path is KServe's or Anthropic's."""
    if path.startswith("/v2/"):
        return kserve_error(error)
    if path.startswith("/v1/messages"):
        return message_error(error, request_id)
    return error_body(error)
