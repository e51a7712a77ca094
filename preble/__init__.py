"""Preble: prefix-aware serving of large language models on many GPUs.

This package is the vocabulary shared by all parts, and the client SDK. It is light: importing it
loads neither torch nor ray.
"""

__version__ = "0.1.0"
