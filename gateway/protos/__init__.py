"""Wire formats of gRPC as code: generated from the `.proto` files beside it by `make protos`, never edited.

Apart from backends and doors because both speak them: gateway/backends/triton is a client of the inference service,
gateway/rpc offers it. A process that imports this cannot import tritonclient: both register package `inference`.
"""
