"""Map the colours of a light figure to those of the same figure on a dark page."""

import numpy as np
from matplotlib import colors

from pfcore.figures.style import PALETTE

THEMES = ("light", "dark")
BACKGROUND = {"light": "#ffffff", "dark": "#16191d"}
# Lighter variants of the flows' colours.
_DARK = {BACKGROUND["light"]: BACKGROUND["dark"], **dict(PALETTE.values())}

# Björn Ottosson's OKLab, in which equal differences of lightness look equal.
_TO_CONE = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _to_oklab(rgb: np.ndarray) -> np.ndarray:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return _TO_LAB @ np.cbrt(_TO_CONE @ linear)


def _from_oklab(lab: np.ndarray) -> np.ndarray:
    linear = np.linalg.solve(_TO_CONE, np.linalg.solve(_TO_LAB, lab) ** 3)
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


_PAPER = float(_to_oklab(np.array(colors.to_rgb(BACKGROUND["dark"])))[0])


def themed(color: str, theme: str, *, fill: bool = False) -> str:
    """A colour of the light theme as it appears in `theme`; its opacity is kept.

    Black becomes light, and white becomes the page's background. A saturated colour keeps its hue,
    and pale and deep are exchanged: a colour that contrasts with white contrasts with dark, and a
    pale area stays a tint of the page.

    Args:
      color: as "#rrggbb" or "#rrggbbaa".
      theme: "light" or "dark".
      fill: whether the colour fills an area, which needs less contrast than a line.

    Raises:
      ValueError: the theme is unknown.
    """
    if theme not in THEMES:
        raise ValueError(f"theme must be one of {THEMES}, got {theme!r}")
    if theme == "light":
        return color
    opaque, opacity = color[:7].lower(), color[7:]
    known = {light.lower(): dark for light, dark in _DARK.items()}
    if opaque in known:
        return known[opaque] + opacity
    lightness, a, b = _to_oklab(np.array(colors.to_rgb(opaque)))
    if np.hypot(a, b) < 0.02:
        # Greys are harder to distinguish from dark than from white.
        turned = _PAPER + (0.93 - _PAPER) * (1 - lightness) ** 0.75
    elif fill and len(opacity) == 0:
        turned = _PAPER + (0.85 - _PAPER) * (1 - lightness)
    else:
        turned = 0.55 + 0.35 * (0.93 - min(lightness, 0.93))
    rgb = np.clip(_from_oklab(np.array([turned, a, b])), 0, 1)
    return colors.to_hex(rgb) + opacity
