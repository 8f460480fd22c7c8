"""How options of search, and of its parts, are declared."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from lit_seq2seq.types import UserError


@dataclass(frozen=True)
class Range:
    """Which numbers an option may be; whole ones if `whole`."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    whole: bool = False

    def check(self, value: object) -> int | float:
        """Return the number if it is in the range.

        Raises:
            ValueError: it is not; the message is what was expected.
        """
        number = self._number(value)
        if number != number or (self.least is not None and number < self.least):
            raise ValueError(self.described)
        if self.above is not None and number <= self.above:
            raise ValueError(self.described)
        if self.whole and number >= 2**31:
            raise ValueError("below 2^31")
        if self.most is not None and number > self.most:
            raise ValueError(f"at most {self.most:,}" if self.whole else self.described)
        return number

    def _number(self, value: object) -> int | float:
        """Turn a number, also of NumPy, into one of Python, and anything else, or infinity, into NaN."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return math.nan
        if isinstance(value, Integral):
            number = int(value)
            return number if self.whole or abs(number) < 1e300 else math.nan
        return float(value) if math.isfinite(value) else math.nan

    @property
    def described(self) -> str:
        """What is expected, in words."""
        if self.whole:
            return f"an integer of at least {self.least}"
        if self.least is not None and self.most is not None:
            return f"a number from {self.least:g} to {self.most:g}"
        limits = {"of at least": self.least, "above": self.above, "at most": self.most}
        found = [f"{words} {limit:g}" for words, limit in limits.items() if limit is not None]
        return f"a number {' and '.join(found)}" if found else "a finite number"

    @property
    def schema(self) -> dict[str, float]:
        """The same as pydantic names it."""
        found = {"ge": self.least, "le": self.most, "gt": self.above}
        return {name: limit for name, limit in found.items() if limit is not None}


def option(default: Any, about: str, allowed: Range | None = None, *, part: bool = False) -> Any:
    """Declare an option of search, the only place where you have to.

    Args:
        default: its value unless another is given.
        about: what it does, for help, pages and schemas.
        allowed: which numbers it may be.
        part: whether it names parts or files, which a request over HTTP may not.
    """
    return field(default=default, metadata={"about": " ".join(about.split()), "allowed": allowed, "part": part})


def counts(least: int, most: int | None = None) -> Range:
    """Return the whole numbers from `least`."""
    return Range(least, most, whole=True)


def expect(part: object, name: str, allowed: Range) -> None:
    """Check a number that a part has been given.

    Raises:
        UserError: it is not allowed.
    """
    value = getattr(part, name)
    try:
        allowed.check(value)
    except ValueError as error:
        raise UserError(f"{type(part).__name__}: {name}={value!r:.60}: must be {error}") from None
