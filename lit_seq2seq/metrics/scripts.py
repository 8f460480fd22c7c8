"""Scripts that are written without spaces between words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_LEAST = 5  # a script counts where it has at least one of so many characters

_HAN = re.compile(
    "[\u2e80-\u2fdf\u3005-\u3007\u3100-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_KANA = re.compile("[\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]")
# Thai, Lao, Tibetan, Burmese, Khmer, Tai Le, New Tai Lue, Tai Tham, Balinese, Javanese, more Burmese, Tai Viet
_OTHERS = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff"
    "\uaa60-\uaadf]"
)
_SCRIPTS = (_HAN, _KANA, _HANGUL, _OTHERS)

COUNTS = 1 + len(_SCRIPTS)


def count_scripts(texts: Iterable[str]) -> list[int]:
    """Count the characters of some texts: all that are not spaces, Han, kana, Hangul, and of others without spaces.

    Example:
        >>> count_scripts(["我 love 東京タワー", "ไทย"])
        [13, 3, 3, 0, 3]
    """
    joined = "".join(text for part in texts for text in part.split())
    return [len(joined), *(0 if joined.isascii() else len(script.findall(joined)) for script in _SCRIPTS)]


def tokenizations(counts: Sequence[int]) -> tuple[str, ...]:
    """Name how sacreBLEU best splits texts with these counts of `count_scripts`: at first choice, and without packages.

    Example:
        >>> tokenizations(count_scripts(["我爱你"])), tokenizations(count_scripts(["「はい」と言う"]))
        (('zh',), ('ja-mecab', 'char'))
        >>> tokenizations(count_scripts(["안녕하세요"])), tokenizations(count_scripts(["a man"]))
        (('ko-mecab', '13a'), ('13a',))
    """
    total, han, kana, hangul, others = counts
    if _LEAST * (han + kana + others) < max(total, 1):
        return ("ko-mecab", "13a") if _LEAST * hangul >= max(total, 1) else ("13a",)
    if others > (han + kana) / 10:
        return ("char",)
    return ("ja-mecab", "char") if kana > han / 10 else ("zh",)


def lacks_spaces(texts: Sequence[str]) -> bool:
    """Tell whether texts are in a script without spaces between words, and have not been split before.

    Example:
        >>> lacks_spaces(["今天天气很好。"]), lacks_spaces(["今天 天气 很 好 。"]), lacks_spaces(["A fine day."])
        (True, False, False)
    """
    total, han, kana, _, others = count_scripts(texts)
    pieces = sum(len(text.split()) for text in texts)
    return _LEAST * (han + kana + others) >= max(total, 1) and total > 3 * pieces
