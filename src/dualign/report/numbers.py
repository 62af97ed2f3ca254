"""Figures as a reader wants them: no more digits than the error allows, a real minus sign, a dash for nothing."""

import math
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

NOTHING = "–"


def is_figure(value: Any) -> TypeGuard[float]:
    """Return whether ``value`` is one finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def figure(value: Any, digits: int = 3) -> str:
    """Return ``value`` to ``digits`` significant digits; counts whole, in groups of three with thin spaces."""
    if not is_figure(value):
        return NOTHING
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}".replace(",", "\u202f").replace("-", "−")
    size = abs(value)
    if size != 0 and (size < 1e-4 or size >= 1e6):
        return f"{value:.{digits - 1}e}".replace("-", "−")
    decimals = max(0, digits - 1 - (math.floor(math.log10(size)) if size else 0))
    text = f"{value:.{min(decimals, 6)}f}"
    return _signed(text.rstrip("0").rstrip(".") if "." in text else text)


def measured(value: Any, error: Any) -> str:
    """Return ``value ± 1.96 error``: a 95 % interval, both to two significant digits of its half width."""
    if not is_figure(value):
        return NOTHING
    if not is_figure(error) or error <= 0:
        return figure(value)
    half = 1.96 * error
    decimals = min(6, max(0, 1 - math.floor(math.log10(half))))
    return _signed(f"{value:.{decimals}f} ± {half:.{decimals}f}")


def interval(low: Any, high: Any) -> str:
    """Return ``low to high`` in equal decimals."""
    if not (is_figure(low) and is_figure(high)):
        return NOTHING
    width = abs(high - low) or abs(high) or 1.0
    decimals = min(6, max(0, 2 - math.floor(math.log10(width))))
    return f"{_signed(f'{low:.{decimals}f}')} to {_signed(f'{high:.{decimals}f}')}"


def share(value: Any) -> str:
    """Return a share as per cent."""
    return f"{figure(100 * value)} %" if is_figure(value) else NOTHING


def duration(seconds: Any) -> str:
    """Return seconds as seconds, or as minutes from two minutes on."""
    if not is_figure(seconds):
        return NOTHING
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def multiplier_label(multipliers: Any) -> str:
    """Return ``λ = 0.5`` for one multiplier, ``λ = (0.5, 0.1)`` for several."""
    if not isinstance(multipliers, Mapping) or not multipliers:
        return ""
    values = [figure(value, 2 if len(multipliers) > 1 else 3) for value in multipliers.values()]
    return f"λ = {values[0]}" if len(values) == 1 else f"λ = ({', '.join(values)})"


def _signed(text: str) -> str:
    """Return ``text`` with a real minus sign, and none before a leading figure that was rounded to zero."""
    return re.sub(r"^−(?=0(\.0*)?( |$))", "", text.replace("-", "−"))
