"""gRPC and nothing else: KServe v2, as Triton's clients speak it, a typed chat service, health and reflection."""
