"""The methods, one file or folder each: paper, equations, defaults. registry.py is the only file that names them."""
