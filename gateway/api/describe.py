"""The OpenAPI description at `/docs`: FastAPI's own routes plus the hot ones, from the types that check them."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gateway.core.call import Endpoint
from gateway.core.openai import FIELD_TYPES, REQUIRED

_SUMMARIES = {
    Endpoint.CHAT: "Chat completion, whole or as server-sent events",
    Endpoint.COMPLETIONS: "Text completion, whole or as server-sent events",
    Endpoint.EMBEDDINGS: "Embedding vectors (on engines that offer them)",
    Endpoint.RESPONSES: "OpenAI's Responses, whole or as server-sent events (docs/responses.md)",
    Endpoint.MESSAGES: "Anthropic's Messages, whole or as server-sent events (docs/messages.md)",
    Endpoint.COUNT_TOKENS: "How many tokens a message would be (on engines that offer it)",
    Endpoint.RERANK: "Documents in the order of their relevance (on engines that offer it)",
    Endpoint.SCORE: "Similarity of pairs of texts (on engines that offer it)",
}
_WHOLE = {Endpoint.EMBEDDINGS, Endpoint.COUNT_TOKENS, Endpoint.RERANK, Endpoint.SCORE}
_EXAMPLES: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32},
    Endpoint.COMPLETIONS: {"prompt": "Hello", "max_tokens": 32},
    Endpoint.EMBEDDINGS: {"input": "Hello"},
    Endpoint.RESPONSES: {"input": "Hello", "max_output_tokens": 32},
    Endpoint.MESSAGES: {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32},
    Endpoint.COUNT_TOKENS: {"messages": [{"role": "user", "content": "Hello"}]},
    Endpoint.RERANK: {"query": "Hello", "documents": ["Hi", "Goodbye"]},
    Endpoint.SCORE: {"text_1": "Hello", "text_2": ["Hi", "Goodbye"]},
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def describe(app: FastAPI, model: str) -> dict[str, Any]:
    """The document, made once; `model` is the name its examples ask for."""
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = document.setdefault("components", {}).setdefault("schemas", {})
    components["Error"] = _ERROR
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for endpoint in Endpoint:
        document["paths"][f"/v1/{endpoint}"] = {"post": _operation(endpoint, components, model)}
    app.openapi_schema = document
    return document


def _operation(endpoint: Endpoint, components: dict[str, Any], model: str) -> dict[str, Any]:
    types = FIELD_TYPES[endpoint]
    schemas, found = msgspec.json.schema_components(types.values(), ref_template="#/components/schemas/{name}")
    components.update(found)
    body = {
        "type": "object",
        "required": list(REQUIRED[endpoint]),
        "properties": dict(zip(types, schemas, strict=True)),
        "additionalProperties": False,
        "example": {"model": model, **_EXAMPLES[endpoint]},
    }
    answers: dict[str, Any] = {"200": {"description": "The engine's answer", "content": {"application/json": {}}}}
    if endpoint not in _WHOLE:
        answers["200"]["content"]["text/event-stream"] = {}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for status, words in {
        "400": "The request is wrong; `param` names the field",
        "401": "No key, or not one of ours",
        "404": "No such model",
        "429": "Too many requests wait already",
        "502": "The engine failed",
        "503": "Nobody can answer now",
        "504": "The engine, or the request's deadline, ran out of time",
    }.items():
        answers[status] = {"description": words, "content": error}
    return {
        "tags": ["inference"],
        "summary": _SUMMARIES[endpoint],
        "security": [{"key": []}, {}],
        "operationId": endpoint.name.lower(),
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": answers,
    }
