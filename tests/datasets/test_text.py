"""Text of any encoding, line end and normal form; YAML whose keys stand once."""

import os
import unicodedata
from pathlib import Path

import pytest

from datasets.sample import DataError
from datasets.strict_yaml import read_yaml, strict_yaml
from datasets.text import decode_text, lines_of, named, same_form, shown

WORDS = "Müller, naïve\nstraße"


class TestText:
    @pytest.mark.parametrize(
        "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"]
    )
    def test_encodings(self, encoding: str) -> None:
        assert decode_text(WORDS.encode(encoding)) == WORDS

    def test_windows_letters_and_bytes_that_no_code_page_has(self) -> None:
        assert decode_text("é “x” €".encode("cp1252")) == "é “x” €"
        assert decode_text(b"\x81\xe9") == "\x81é"
        assert decode_text(b"") == ""

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_line_ends(self, end: str) -> None:
        assert lines_of(end.join(["a", " b ", "", "c\x0bd\u2028e"])) == ["a", "b", "c\x0bd\u2028e"]

    def test_names_in_either_form_are_the_same(self) -> None:
        composed, split = (unicodedata.normalize(form, "Ärger") for form in ("NFC", "NFD"))
        assert composed != split
        assert same_form(composed) == same_form(split)

    def test_names_that_are_no_utf8_can_be_shown(self) -> None:
        assert shown(os.fsdecode(b"caf\xe9")) == "café"
        assert shown("plain") == "plain"

    def test_lists_count_what_they_do_not_name(self) -> None:
        assert named(range(134)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... and 124 more"
        assert named(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
        assert named([]) == ""
        assert named("abc", most=2, between="\n") == "a\nb\n... and 1 more"


class TestYaml:
    @pytest.mark.parametrize("as_written", [False, True])
    @pytest.mark.parametrize(
        ("text", "key", "lines"),
        [
            ("a: 1\nb: 2\na: 3\n", "a", "1 and 3"),
            ("x:\n  y: 1\n  z: 2\n  y: 3\n", "y", "2 and 4"),
            ("x: [{a: 1, b: 2, a: 3}]", "a", "1 and 1"),
            ("0: a\n1: b\n1: c\n", "1", "2 and 3"),
        ],
    )
    def test_a_key_that_stands_twice(self, text: str, key: str, lines: str, as_written: bool) -> None:
        with pytest.raises(DataError, match=rf"^page: '{key}' is given twice, in lines {lines}"):
            strict_yaml(text, "page", as_written)

    def test_keys_that_are_equal_by_their_meaning(self) -> None:
        with pytest.raises(DataError, match="'off' is given twice"):
            strict_yaml("{no: 1, off: 2}", "page")
        assert strict_yaml("{no: 1, off: 2}", "page", as_written=True) == {"no": "1", "off": "2"}

    def test_what_is_merged_may_be_changed(self) -> None:
        assert strict_yaml("base: &b {p: 1}\nc: {<<: *b, p: 2}", "page")["c"] == {"p": 2}

    def test_words_as_written(self) -> None:
        text = "[no, on, null, ~, 12, 1.0, 0x1F, 2020-01-01, 1:30, 'quoted']"
        assert strict_yaml(text, "page", as_written=True) == [
            "no", "on", "null", "~", "12", "1.0", "0x1F", "2020-01-01", "1:30", "quoted"
        ]  # fmt: skip

    @pytest.mark.parametrize("text", ["a: [", "? [a]\n: b", "d: 2020-13-45", "a: \x00", "[" * 1500])
    def test_no_yaml(self, text: str) -> None:
        with pytest.raises(DataError, match=r"^page: no YAML"):
            strict_yaml(text, "page")

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
    def test_files_of_any_encoding(self, tmp_path: Path, encoding: str) -> None:
        (tmp_path / "a.yaml").write_bytes("name: Straße\r\n".encode(encoding))
        assert read_yaml(tmp_path / "a.yaml") == {"name": "Straße"}
