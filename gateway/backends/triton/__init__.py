"""NVIDIA Triton as an engine: TensorRT-LLM's contracts, FasterTransformer's, vLLM's, by gRPC or HTTP.

A package because much is done here that OpenAI-speaking engines do themselves. Top to bottom: backend.py (the life of
a call), asked.py and prompts.py (what is wanted), contracts/ (in whose tensors), *_wire.py (how it travels), answer.py
and choice.py (what came back).
"""
