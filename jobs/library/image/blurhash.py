"""BlurHash: a photo's placeholder in some thirty letters.

The algorithm and its base 83 are those of https://github.com/woltapp/blurhash (Algorithm.md): a
discrete cosine transform of linear light, its amplitudes coarsely quantised.
"""

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["blurhash"]

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz#$%*+,-.:;=?@[]^_{|}~"
ACROSS, DOWN = 4, 3
#: More pixels change no digit of so few waves.
EDGE = 32

Light = tuple[float, float, float]


def blurhash(picture: Any) -> str:
    """Return the BlurHash of 4 by 3 components of an RGB picture."""
    small = picture.resize((EDGE, EDGE))
    raw = small.tobytes()
    linear = [_linear(value) for value in range(256)]
    pixels = [
        (linear[raw[at]], linear[raw[at + 1]], linear[raw[at + 2]]) for at in range(0, len(raw), 3)
    ]
    waves = [
        [math.cos(math.pi * n * x / EDGE) for x in range(EDGE)] for n in range(max(ACROSS, DOWN))
    ]
    factors = [_factor(pixels, waves[i], waves[j]) for j in range(DOWN) for i in range(ACROSS)]
    mean, rest = factors[0], factors[1:]
    peak = max(abs(value) for factor in rest for value in factor)
    step = max(0, min(82, math.floor(peak * 166 - 0.5)))
    top = (step + 1) / 166
    red, green, blue = (_encoded(value) for value in mean)
    return (
        _digits((ACROSS - 1) + (DOWN - 1) * 9, 1)
        + _digits(step, 1)
        + _digits((red << 16) + (green << 8) + blue, 4)
        + "".join(_digits(_quantised(factor, top), 2) for factor in rest)
    )


def _factor(pixels: Sequence[Light], across: Sequence[float], down: Sequence[float]) -> Light:
    red = green = blue = 0.0
    for y in range(EDGE):
        row = y * EDGE
        for x in range(EDGE):
            wave = across[x] * down[y]
            r, g, b = pixels[row + x]
            red += wave * r
            green += wave * g
            blue += wave * b
    flat = across[1] == 1.0 and down[1] == 1.0
    scale = (1.0 if flat else 2.0) / (EDGE * EDGE)
    return red * scale, green * scale, blue * scale


def _quantised(factor: Light, top: float) -> int:
    digits = 0
    for value in factor:
        root = math.copysign(math.sqrt(abs(value) / top), value)
        digits = digits * 19 + max(0, min(18, math.floor(root * 9 + 9.5)))
    return digits


def _linear(value: int) -> float:
    share = value / 255
    return share / 12.92 if share <= 0.04045 else math.pow((share + 0.055) / 1.055, 2.4)


def _encoded(value: float) -> int:
    share = max(0.0, min(1.0, value))
    if share <= 0.0031308:
        return int(share * 12.92 * 255 + 0.5)
    return int((1.055 * math.pow(share, 1 / 2.4) - 0.055) * 255 + 0.5)


def _digits(value: int, length: int) -> str:
    found = ""
    for _ in range(length):
        value, rest = divmod(value, 83)
        found = DIGITS[rest] + found
    return found
