"""Read raw text in the forms that `src.preprocess` knows, as a stream: no file is held in memory as a whole."""

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

from src.common.checks import check_text
from src.common.errors import InputError
from src.common.files import file_state
from src.common.reading import parse_json, read_line

PIECE_CHARS = 32_768
JSON_LINE_CHARS = 64_000_000
READ_BYTES = 1 << 20


class Piece(NamedTuple):
    """A document, or a part of one.

    A long document is cut after a line, so that several processes can share it.
    """

    text: str
    ends_document: bool

    @property
    def num_chars(self) -> int:
        """Number of characters."""
        return len(self.text)


class Example(NamedTuple):
    """A fine-tuning example: a prompt, and the completion that the model learns."""

    prompt: str
    completion: str

    @property
    def num_chars(self) -> int:
        """Number of characters."""
        return len(self.prompt) + len(self.completion)


class Line(NamedTuple):
    """A line of a file, with its newline, and its place in the file."""

    text: str
    path: Path
    number: int

    @property
    def place(self) -> str:
        """The place of the line as `file:number`, for messages."""
        return f"{self.path}:{self.number}"


def _as_is(text: str) -> str:
    return text


def _pieces(documents_of_lines: Iterator[tuple[str, bool]]) -> Iterator[Piece]:
    """Join lines into pieces of about PIECE_CHARS characters. Each line comes with whether it begins a document."""
    held: list[str] = []
    num_chars = 0
    for text, begins_document in documents_of_lines:
        if held and (begins_document or num_chars >= PIECE_CHARS):
            piece = "".join(held)
            yield Piece(piece.rstrip("\n") if begins_document else piece, begins_document)
            held, num_chars = [], 0
        held.append(text)
        num_chars += len(text)
    if held:
        yield Piece("".join(held).rstrip("\n"), True)


def _read_paragraphs(lines: Iterator[Line]) -> Iterator[Piece]:
    """Read documents with blank lines between them."""

    def marked() -> Iterator[tuple[str, bool]]:
        begins, at_line_start = True, True
        for line in lines:
            if at_line_start and line.text.isspace():
                begins = True
            else:
                yield line.text, begins
                begins = False
            at_line_start = line.text.endswith("\n")

    return _pieces(marked())


def _read_wikitext(lines: Iterator[Line]) -> Iterator[Piece]:
    """Read articles that each begin with a ` = Title = ` line. Blank lines are dropped."""
    title = re.compile(r" = (?!=).*(?<!=) = \n?")
    return _pieces((line.text, bool(title.fullmatch(line.text))) for line in lines if not line.text.isspace())


def clean_wikitext(text: str) -> str:
    """Undo WikiText's tokenization: `1 @,@ 000 miles , ( he said ) .` becomes `1,000 miles, (he said).`"""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r"= (?==)", "=", text)
    text = re.sub(r" (?=n't\b|'(?:s|t|m|d|re|ve|ll)\b)", "", text)
    text = re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
    text = re.sub(r"([(\[{]) ", r"\1", text)
    text = re.sub(r" (?=[)\]}]|[,.:;!?](?:\s|$))", "", text)
    return re.sub(r" *\n *", "\n", text).strip(" ")


def _json_fields(line: Line, *names: str) -> list[str]:
    record = parse_json(line.text, line.place)
    if not isinstance(record, dict):
        raise InputError(
            f"{line.place}: a JSON {type(record).__name__} where an object with {' and '.join(names)} should be"
        )
    for name in names:
        if not isinstance(record.get(name), str):
            raise InputError(f'{line.place}: no text under "{name}"; the object has {", ".join(record) or "nothing"}')
        try:
            check_text(record[name])
        except InputError as error:
            raise InputError(f"{line.place}: {error}") from None
    return [record[name] for name in names]


def _read_jsonl(lines: Iterator[Line]) -> Iterator[Piece]:
    """Read one document per line, as `{"text": ...}`."""
    texts = (_json_fields(line, "text")[0] for line in lines if not line.text.isspace())
    return (Piece(text, True) for text in texts if text.strip())


def _read_lines(lines: Iterator[Line]) -> Iterator[Piece]:
    """Read one document per line. A line longer than PIECE_CHARS comes in parts."""

    def marked() -> Iterator[tuple[str, bool]]:
        begins = True
        for line in lines:
            if not (begins and line.text.isspace()):
                yield line.text, begins
            begins = line.text.endswith("\n")

    return _pieces(marked())


def _read_lambada(lines: Iterator[Line]) -> Iterator[Piece]:
    """Read one document per line, as plain text or as `{"text": ...}`."""
    for line in lines:
        text = _json_fields(line, "text")[0] if line.text.startswith("{") else line.text
        if text.strip():
            yield Piece(text.rstrip("\n"), True)


def _read_finetune(lines: Iterator[Line]) -> Iterator[Example]:
    """Read one example per line, as `{"prompt": ..., "completion": ...}`."""
    return (Example(*_json_fields(line, "prompt", "completion")) for line in lines if not line.text.isspace())


@dataclass(frozen=True)
class Form:
    """A form of raw text.

    Args:
        read: Function that turns the lines of one file into pieces of documents, or into examples.
        clean: Function that worker processes apply to each piece before they tokenize it.
        whole_lines: Whether lines must not be cut. If true, a line of JSON_LINE_CHARS or more is an error. If false, a
            line longer than PIECE_CHARS is read in parts.
    """

    read: Callable[[Iterator[Line]], Iterator[Piece] | Iterator[Example]]
    clean: Callable[[str], str] = _as_is
    whole_lines: bool = False


_TEXT = Form(_read_paragraphs)
_WIKITEXT = Form(_read_wikitext, clean=clean_wikitext)
FORMS = {
    "text": _TEXT,
    "openwebtext": _TEXT,
    "lines": Form(_read_lines),
    "wikitext": _WIKITEXT,
    "wiki": _WIKITEXT,
    "lambada": Form(_read_lambada, whole_lines=True),
    "jsonl": Form(_read_jsonl, whole_lines=True),
    "finetune": Form(_read_finetune, whole_lines=True),
}


class Corpus:
    """The raw text of several files, read one after the other.

    Iteration yields pieces of documents, or examples. It raises InputError if a file cannot be read, is not UTF-8, has
    a line that its form does not allow, or changes while it is read.

    Args:
        files: The files in reading order. The end of a file ends a document.
        form: Form of the text in them.
    """

    def __init__(self, files: Sequence[Path], form: Form) -> None:
        self._files = files
        self._form = form
        self._states = {path: file_state(path) for path in files}
        self.num_bytes = sum(path.stat().st_size for path in files)
        self._bytes_before = 0
        self._file: TextIO | None = None

    @property
    def bytes_read(self) -> int:
        """Bytes read from all files so far."""
        return self._bytes_before + (self._file.buffer.tell() if self._file else 0)

    def __iter__(self) -> Iterator[Piece] | Iterator[Example]:
        for path in self._files:
            try:
                yield from self._form.read(self._lines(path))
            except InputError:
                self._check_unchanged(path)  # a file that is cut can look like one with a bad line
                raise

    def _lines(self, path: Path) -> Iterator[Line]:
        limit = JSON_LINE_CHARS if self._form.whole_lines else PIECE_CHARS
        try:
            with open(path, encoding="utf-8-sig", newline="\n") as self._file:
                self._check_unchanged(path)
                for number in count(1):
                    line = Line(read_line(self._file, limit), path, number)
                    if not line.text:
                        break
                    if self._form.whole_lines and len(line.text) >= limit:
                        raise InputError(
                            f"{line.place}: a line of {limit} characters or more; "
                            "put one document or JSON object on each line"
                        )
                    yield line
                self._check_unchanged(path)
                self._bytes_before, self._file = self.bytes_read, None
        except UnicodeDecodeError:
            with open(path, "rb") as file:
                offset = _first_invalid_byte(file)
            if offset is None:
                raise _changed(path) from None
            raise InputError(f"{path}: byte {offset} is not UTF-8; convert the file to UTF-8 first") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None

    def _check_unchanged(self, path: Path) -> None:
        if file_state(path) != self._states[path]:
            raise _changed(path)


def _changed(path: Path) -> InputError:
    return InputError(f"{path}: changed while it was read; start again when nothing writes to it")


def _first_invalid_byte(file: BinaryIO) -> int | None:
    """Return the offset of the first byte that is not UTF-8, or None. Python's own error gives it within a buffer."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    while True:
        block = file.read(READ_BYTES)
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            return offset - pending + error.start
        if not block:
            return None
        offset += len(block)
