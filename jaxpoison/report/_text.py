"""Text that came from the data is hostile: make every character of it visible, and short."""

from __future__ import annotations

import math
import unicodedata

# Everything that draws nothing, moves the cursor or reorders its neighbours: controls, formats
# (bidirectional overrides, zero-width characters), lone surrogates (they break UTF-8 output),
# private use, unassigned, line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

MINUS, TIMES, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"


def visible(text: object, limit: int = 200) -> str:
    """Shows hidden characters as ⟨U+202E⟩, joins lines, and cuts the text to `limit` characters.

    The result is still plain text: it must be escaped for the place where it is shown (HTML by
    the template, a terminal's markup by the caller).

    Args:
      text: anything; converted with `str`.
      limit: longest result, in characters; a longer one ends with an ellipsis.

    Returns:
      Text without control, format, surrogate or separator characters.
    """
    out: list[str] = []
    length = 0
    for char in str(text):
        if unicodedata.category(char) in _HIDDEN:
            char = " " if char in "\t\n\r" else f"⟨U+{ord(char):04X}⟩"
        length += len(char)
        if length > limit:
            return "".join(out).rstrip()[: limit - 1] + "…"
        out.append(char)
    return "".join(out)


def count(value: int | float) -> str:
    """Formats a whole number with thousands separators."""
    return f"{int(value):,}"


def number(value: object) -> str:
    """Formats a number with three significant digits; text for anything that is not a number.

    Trailing zeros stay, so that a column of numbers lines up.
    """
    if isinstance(value, bool) or value is None:
        return DASH if value is None else str(value).lower()
    try:
        real = float(value)  # type: ignore[arg-type]  # anything else is caught below
    except (TypeError, ValueError):
        return visible(value, 40)
    if not math.isfinite(real):
        return str(real)
    if real == 0:
        return "0"
    if abs(real) >= 1e6 or abs(real) < 1e-3:
        mantissa, exponent = f"{real:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    if abs(real) >= 1000:
        return f"{real:,.0f}".replace("-", MINUS)
    digits = max(0, 2 - math.floor(math.log10(abs(real))))
    return f"{real:.{digits}f}".replace("-", MINUS)


def percent(value: object) -> str:
    """Formats a fraction as a percentage that never rounds a positive value to nothing."""
    real = float(value)  # type: ignore[arg-type]  # callers pass numbers
    if real == 0:
        return "0 %"
    if 0 < real < 0.0001:
        return "< 0.01 %"
    if 0.9995 < real < 1:
        return "> 99.9 %"
    text = number(100 * real)
    if "." in text and "e" not in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text} %"


def seconds(value: object) -> str:
    """Formats a duration."""
    real = float(value)  # type: ignore[arg-type]  # callers pass numbers
    if real >= 3600:
        return f"{int(real // 3600)} h {int(real % 3600 // 60)} min"
    if real >= 60:
        return f"{int(real // 60)} min {int(real % 60)} s"
    return f"{real:.0f} s" if real >= 10 else f"{real:.1f} s" if real >= 1 else f"{real:.2g} s"


def plural(value: int, word: str, many: str | None = None) -> str:
    """Counts a noun: `1 row`, `2,000 rows`."""
    return f"{count(value)} {word if value == 1 else many or word + 's'}"
