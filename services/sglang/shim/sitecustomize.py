"""Lets the CUDA wheel of SGLang be imported, and serve text, on a machine without a GPU.

PyPI has SGLang for CUDA only; upstream's CPU build is made from source, and its C++ kernels want Intel AMX. Without AMX
the Python code in the wheel, told by SGLANG_USE_CPU_ENGINE=1, runs on plain PyTorch operations. What stops it are
imports, and a few flags that mean something only beside a GPU. Nothing installed is changed: Python runs a module of
this name, found through PYTHONPATH, at the start of every process of SGLang.

    gpu_only.py        triton, sgl_kernel and torchvision can be imported; using anything of them raises
    triton_names.py    the handful of names of Triton that are evaluated while modules are only being imported
    after_import.py    PyTorch neither pins memory nor believes in Triton
"""

import sys

import after_import
import gpu_only

sys.meta_path.insert(0, after_import.Finder())
sys.meta_path.append(gpu_only.Finder())
