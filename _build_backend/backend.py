"""PEP 517 backend: scikit-build-core, with torch as a build requirement only if the target environment has none.

With torch in ``build-system.requires``, every isolated build would download gigabytes, although the torch to build
against is usually installed already.
"""

from __future__ import annotations

from scikit_build_core import build as _skbuild
from scikit_build_core.build import *  # noqa: F403
from torch_location import find_torch

# With the stable ABI, a library built with this version runs with every torch >= 2.11.
_BUILD_TORCH = "torch==2.13.0"


def _torch_requirement() -> list[str]:
    return [] if find_torch() else [_BUILD_TORCH]


def get_requires_for_build_wheel(config_settings: dict[str, list[str] | str] | None = None) -> list[str]:
    return [*_skbuild.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings: dict[str, list[str] | str] | None = None) -> list[str]:
    return [*_skbuild.get_requires_for_build_editable(config_settings), *_torch_requirement()]
