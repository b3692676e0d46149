"""Loader of the compiled extension, which registers ``torch.ops.shfcas``."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch


def load_library() -> ModuleType:
    """Imports ``shfcas._C``.

    Raises:
        ImportError: The extension is missing, or does not work with this torch. The message names both versions.
    """
    try:
        return importlib.import_module("shfcas._C")
    except ImportError as error:
        raise ImportError(
            f"shfcas: the compiled extension did not load ({error}). It was built with torch "
            f"{_built_with()} and needs torch >= 2.11; this is torch {torch.__version__}. "
            "Remedy: reinstall with `pip install --force-reinstall --no-deps shfcas`, or, in a checkout, "
            "`pip install -e .`"
        ) from error


def _built_with() -> str:
    try:
        return str(importlib.import_module("shfcas._build_info").TORCH_VERSION)
    except ImportError:
        return "(not built)"


_C = load_library()


def build_facts() -> dict[str, str]:
    """Returns how the extension was compiled: torch, CUDA (empty without), its architectures, the compiler.

    ``simd`` is the instruction set of the CPU kernels on this processor: ``avx512``, ``avx2`` or ``baseline``. Set
    the environment variable ``SHFCAS_SIMD`` before the first import to select a lower one.
    """
    return dict(_C.build_facts())
