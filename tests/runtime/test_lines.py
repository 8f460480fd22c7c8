import json

import pytest

from lit_seq2seq.files.lines import json_line, one_line, read_lines
from lit_seq2seq.types import UserError

INNER = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_lines_end_where_the_file_says(mark: str, end: str, last: bool) -> None:
    texts = ["eins", "", INNER, "\ufeffzwei"]
    content = (mark + end.join(texts) + end * last).encode()
    assert list(read_lines(content.splitlines(keepends=True) if end == "\r\n" else parts(content), "f")) == texts


def parts(content: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in content.split(b"\n")]
    return [*lines[:-1], lines[-1][:-1]] if lines[-1] != b"\n" else lines[:-1]


def test_a_carriage_return_within_a_line_is_text() -> None:
    assert list(read_lines([b"a\rb\r\n", b"c\rd"], "f")) == ["a\rb", "c\rd"]


def test_nothing_has_no_lines_and_a_blank_one_is_one() -> None:
    assert list(read_lines([], "f")) == []
    assert list(read_lines([b"\xef\xbb\xbf\n"], "f")) == [""]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_named(encoding: str) -> None:
    with pytest.raises(
        UserError, match=rf"expected UTF-8 text in f, but it is {encoding.upper().replace('-L', 'L')[:6]}"
    ):
        list(read_lines("eins\nzwei\n".encode(encoding).splitlines(keepends=True), "f"))


def test_what_goes_out_is_one_line() -> None:
    text = f"x\n{INNER}\r\ny\rz"
    assert one_line(text) == "x a b c d e f g y z"
    assert one_line("") == ""
    line = json_line({"text": text})
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {"text": text}
