"""What tritonserver's Python backend runs on CPU: TensorRT-LLM's two tensor contracts around the embedded engine.

Apart from the model repository, whose model.py files only name a class from here: these modules can be tested alone.
"""
