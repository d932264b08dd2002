"""Charts as inline SVG: presentation attributes and classes only, so that no style is inline."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from jaxpoison.report._text import MINUS, count, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from markupsafe import Markup

WIDTH, HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 30, 42  # margins around the plot area
_NUM_BINS = 46
_MAX_POINTS = 3000
_LONG_TAIL = 30.0  # a maximum this many medians away gets a logarithmic axis
_RARE = 15.0  # flagged bars this much lower than the others get a logarithmic axis


class _Axis(NamedTuple):
    low: float
    high: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Maps a value to 0..1."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low)

    def ticks(self, most: int = 5) -> list[float]:
        """Returns round values inside the axis."""
        if self.is_log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            step = max(1, math.ceil((last - first + 1) / most))
            decades = [10.0**power for power in range(first, last + 1, step)]
            if len(decades) > 1:
                return decades
        rough = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(rough))
        step_size = next(unit * k for k in (1, 2, 5, 10) if unit * k >= rough * 0.999)
        start = math.ceil(self.low / step_size)
        stop = math.floor(self.high / step_size + 1e-9)
        return [round(step_size * k, 12) for k in range(start, stop + 1)]


def _label(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, power = f"{value:.0e}".split("e")
        text = f"{mantissa}e{int(power)}"
    elif abs(value) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.6g}"
    return text.replace("-", MINUS)


def _span(values: np.ndarray, pad: float = 0.0) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if not high > low:
        half = abs(low) * 0.05 or 0.5
        return low - half, high + half
    return low - pad * (high - low), high + pad * (high - low)


def _frame(body: str, x: _Axis, y: _Axis, x_name: str, y_name: str, legend: str) -> str:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = []
    for tick in x.ticks():
        at = _LEFT + x.place(tick) * (right - _LEFT)
        parts.append(
            f'<path class="grid" d="M{at:.1f} {_TOP}V{bottom}"/>'
            f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{_label(tick)}</text>'
        )
    for tick in y.ticks(4):
        at = bottom - y.place(tick) * (bottom - _TOP)
        parts.append(
            f'<path class="grid" d="M{_LEFT} {at:.1f}H{right}"/>'
            f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_label(tick)}</text>'
        )
    middle = (_LEFT + right) / 2
    return (
        "".join(parts)
        + body
        + f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>'
        + f'<text class="name" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{x_name}</text>'
        + f'<text class="name" x="{_LEFT - 34}" y="{_TOP - 14}">{y_name}</text>'
        + legend
    )


def _wrap(inner: str, title: str) -> Markup:
    from markupsafe import Markup, escape

    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{inner}</svg>'
    )


def _legend(num_rest: int, num_flagged: int, *, dots: bool) -> str:
    """Draws the legend, flush right above the plot; shape differs as well as colour."""
    if not num_flagged:
        return f'<text x="{WIDTH - _RIGHT}" y="{_TOP - 14}" text-anchor="end">none flagged</text>'
    flagged, rest = f"flagged ({count(num_flagged)})", f"not flagged ({count(num_rest)})"
    at_flagged = WIDTH - _RIGHT - 7 * len(flagged)
    at_rest = at_flagged - 26 - 7 * len(rest)
    y = _TOP - 14
    if dots:
        marks = (
            f'<path class="rest dots big" d="M{at_rest - 10} {y - 4}h0"/>'
            f'<path class="flag cross big" d="M{at_flagged - 14} {y - 8}l8 8m0-8l-8 8"/>'
        )
    else:
        marks = (
            f'<path class="rest bars" d="M{at_rest - 16} {y - 9}h11v10h-11z"/>'
            f'<path class="flag bars" d="M{at_flagged - 12} {y - 9}h5v10h-5z"/>'
        )
    return (
        f'{marks}<text x="{at_rest}" y="{y}">{rest}</text>'
        f'<text x="{at_flagged}" y="{y}">{flagged}</text>'
    )


def _bars(counts: np.ndarray, y: _Axis, share: float, name: str) -> str:
    """Draws one bar a bin, centred in it, `share` of its width."""
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    width = (right - _LEFT) / len(counts)
    path = []
    for k, amount in enumerate(counts.tolist()):
        if amount:
            tall = y.place(amount) * (bottom - _TOP)
            left = _LEFT + (k + (1 - share) / 2) * width
            path.append(f"M{left:.1f} {bottom}v-{tall:.1f}h{width * share:.1f}v{tall:.1f}z")
    return f'<path class="{name} bars" d="{"".join(path)}"/>'


def histogram(values: np.ndarray, flagged: np.ndarray, name: str) -> Markup:
    """Draws how a score is spread over a class: wide bars the rest, narrow ones the flagged rows.

    A score with a long tail gets a logarithmic axis, and so do the counts where few rows are
    flagged: a linear one would make them invisible.

    Args:
      values: [n] scores; those that are not finite are left out.
      flagged: [n] bool.
      name: of the score, for the axis; hostile text is fine.

    Returns:
      An `svg` element, or nothing where there is no finite value.
    """
    import numpy as np
    from markupsafe import Markup, escape

    keep = np.isfinite(values)
    values, flagged = np.asarray(values, np.float64)[keep], np.asarray(flagged, bool)[keep]
    if not values.size:
        return Markup("")
    low, high = _span(values)
    is_log = low > 0 and high > _LONG_TAIL * float(np.median(values))
    space = np.geomspace if is_log else np.linspace
    edges = space(low, high, _NUM_BINS + 1)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # rounding must lose no row
    rest = np.histogram(values[~flagged], edges)[0]
    flag = np.histogram(values[flagged], edges)[0]
    most = int(max(rest.max(), flag.max()))
    log_count = bool(flag.any()) and most > _RARE * flag.max()
    # A logarithmic axis starts below one, or a single row would have no height.
    y = _Axis(0.5, most * 1.3, True) if log_count else _Axis(0.0, most * 1.05)
    body = _bars(rest, y, 0.9, "rest") + _bars(flag, y, 0.45, "flag")
    shown = escape(visible(name, 60)) + (" (log scale)" if is_log else "")
    legend = _legend(int(rest.sum()), int(flag.sum()), dots=False)
    y_name = "rows (log)" if log_count else "rows"
    num_flagged = int(flag.sum())
    num_rows = int(rest.sum()) + num_flagged
    title = f"Histogram of {visible(name, 60)}: {num_rows} rows, {num_flagged} flagged"
    return _wrap(_frame(body, _Axis(low, high, is_log), y, shown, y_name, legend), title)


def scatter(points: np.ndarray, flagged: np.ndarray) -> Markup:
    """Draws a projection of a class: dots the rest, crosses the flagged rows, above the dots.

    Args:
      points: [m, 2]; at most 3,000 are drawn, evenly picked, and equal places once.
      flagged: [m] bool.

    Returns:
      An `svg` element, or nothing where there is no point.
    """
    import numpy as np
    from markupsafe import Markup

    keep = np.isfinite(points).all(axis=1) if len(points) else np.zeros(0, bool)
    points, flagged = np.asarray(points, np.float64)[keep], np.asarray(flagged, bool)[keep]
    if not len(points):
        return Markup("")
    step = -(-len(points) // _MAX_POINTS)
    points, flagged = points[::step], flagged[::step]
    x, y = (_Axis(*_span(points[:, k], 0.04)) for k in (0, 1))
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    at = np.empty(points.shape)
    at[:, 0] = _LEFT + (points[:, 0] - x.low) / (x.high - x.low) * (right - _LEFT)
    at[:, 1] = bottom - (points[:, 1] - y.low) / (y.high - y.low) * (bottom - _TOP)
    dots = np.unique(np.rint(at[~flagged] * 2), axis=0) / 2  # half a pixel is fine enough
    crosses = np.unique(np.rint(at[flagged] * 2), axis=0) / 2
    body = (
        '<path class="rest dots" d="'
        + "".join(f"M{a:g} {b:g}h0" for a, b in dots.tolist())
        + '"/><path class="flag cross" d="'
        + "".join(f"M{a - 2.5:g} {b - 2.5:g}l5 5m0-5l-5 5" for a, b in crosses.tolist())
        + '"/>'
    )
    num_flagged = int(flagged.sum())
    legend = _legend(len(flagged) - num_flagged, num_flagged, dots=True)
    title = f"Projection of {len(flagged)} rows of the class, {num_flagged} of them flagged"
    return _wrap(_frame(body, x, y, "projection 1", "projection 2", legend), title)


def steps(
    radii: Sequence[int], series: Sequence[tuple[str, Sequence[float]]], x_name: str, y_name: str
) -> Markup:
    """Draws shares that fall with the radius, as steps; the first series leads.

    Args:
      radii: ascending whole numbers, one a share.
      series: name and shares of each line.
      x_name: of the radius, for the axis.
      y_name: of the shares, for the axis.

    Returns:
      An `svg` element, or nothing where there is no radius.
    """
    from markupsafe import Markup, escape

    if not radii:
        return Markup("")
    x, y = _Axis(0.0, max(1.0, float(radii[-1]))), _Axis(0.0, 100.0)
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    body = ""
    for number in reversed(range(len(series))):  # the leading line lies on top
        shares = series[number][1]
        corners = [(radii[0], shares[0])]
        for k in range(1, len(radii)):
            if shares[k] != shares[k - 1]:  # the row holds at its radius and falls behind it
                corners.append((radii[k - 1], shares[k]))
        corners.append((radii[-1], shares[-1]))
        path = ""
        for radius, share in corners:
            across = _LEFT + x.place(float(radius)) * (right - _LEFT)
            down = bottom - y.place(100.0 * share) * (bottom - _TOP)
            path += f"H{across:.1f}V{down:.1f}" if path else f"M{across:.1f} {down:.1f}"
        body += f'<path class="{"step" if number else "step lead"}" d="{path}"/>'
    names = ", ".join(name for name, _ in series)
    title = f"{y_name} against radius in {x_name}: {names}"
    legend, at = "", WIDTH - _RIGHT
    for number, (name, _) in reversed(list(enumerate(series))):
        shown = visible(name, 30)
        at -= 7 * len(shown)
        kind = "step" if number else "step lead"
        legend += f'<text x="{at}" y="{_TOP - 14}">{escape(shown)}</text>'
        legend += f'<path class="{kind}" d="M{at - 26} {_TOP - 18}h20"/>'
        at -= 38
    y_axis = f"{escape(visible(y_name, 30))}, %"
    return _wrap(_frame(body, x, y, str(escape(visible(x_name, 60))), y_axis, legend), title)


def sparkline(values: np.ndarray) -> Markup:
    """Draws the outline of a histogram, small enough for a table cell."""
    import numpy as np
    from markupsafe import Markup

    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return Markup("")
    low, high = _span(values)
    counts = np.histogram(values, 24, (low, high))[0]
    tall = np.rint(counts * (17 / max(1, counts.max())))
    tall[counts > 0] = np.maximum(tall[counts > 0], 1)  # a lone row in the tail stays visible
    path = "M0 18" + "".join(f"V{18 - t:g}h3" for t in tall.tolist()) + "V18z"
    return Markup(
        f'<svg class="spark" viewBox="0 0 72 18" aria-hidden="true"><path d="{path}"/></svg>'
    )


def heat_strip(levels: list[int], title: str) -> Markup:
    """Draws one row of features as coloured cells.

    Args:
      levels: one a feature, from -4 (far below the other rows shown) to 4 (far above).
      title: text for screen readers and for the mouse.
    """
    from markupsafe import Markup, escape

    cells = "".join(
        f'<rect class="h{level + 4}" x="{8 * k}" width="7" height="22"/>'
        for k, level in enumerate(levels)
    )
    return Markup(
        f'<svg class="strip" viewBox="0 0 {8 * len(levels) - 1} 22" role="img" '
        f'preserveAspectRatio="none" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{cells}</svg>"
    )
