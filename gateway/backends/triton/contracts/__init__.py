"""One file per contract of tensors that a text model behind Triton may have; `of.py` tells them apart."""
