"""The embedded engine: OpenVINO GenAI continuous batching behind an OpenAI HTTP server."""
