"""A mark for tests that need the drawings of emoji, which are installed apart from the package."""

from __future__ import annotations

import pytest

from logsnr.core.errors import LogsnrError
from logsnr.data.emoji_drawings import describe_sources


def installed() -> bool:
    try:
        return bool(describe_sources())
    except LogsnrError:
        return False


real = pytest.mark.skipif(not installed(), reason="the drawings are not installed: make data")
