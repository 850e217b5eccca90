"""The gateway's table of what the embedded engine takes says what the engine itself says."""

from gateway.backends.openvino import OpenVINO
from gateway.core.call import Endpoint
from openvino_engine import chat, completions, fields


def test_the_gateway_lets_through_exactly_what_the_engine_acts_on() -> None:
    inert = fields._INERT
    assert OpenVINO.fields[Endpoint.CHAT] - inert == chat._FIELDS
    assert OpenVINO.fields[Endpoint.COMPLETIONS] - inert == completions._FIELDS
    assert Endpoint.EMBEDDINGS not in OpenVINO.fields
