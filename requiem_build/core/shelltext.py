"""A shell's text -> its simple commands, each a list of words. It expands nothing and knows no program.

Read are quotes, comments, here-documents, redirections, reserved words, and commands inside of words. What only a
shell can know (aliases, what a variable holds) is left as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .fields import dataclass, field

OPAQUE = "\0"
"""Stands in a word for what another command prints."""
DEPTH_MAX = 500
MISTAKEN_MAX = 50
"""So often what seemed to be arithmetic is read again as commands."""
_NEVER = "\0"
"""What a here-document ends with: its end is the text's."""
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(?:\[[^\]]*\])?\+?=")

_QUOTED = ('"', _NEVER)
_FIRST = frozenset(
    {"if", "then", "elif", "else", "fi", "do", "done", "while", "until", "!", "{", "}", "esac", "coproc"}
)
"""Reserved words after which a command may stand."""
_BLANK = re.compile(r"[ \t\r]+|\\\n")
_PLAIN = re.compile(r"[^\s\\'\"`$#&|;()<>]+")
_COMMENT = re.compile(r"#[^\n]*")
_OPERATOR = re.compile(r"&>>?|&&?|\|\||\|&?|;;&|;[;&]?|\n")
_REDIRECTION = re.compile(r"<<<|<<-?|<&|<>|>>|>&|>\||<|>")
_IN_QUOTES = re.compile(r"[^\"\\$`]+")
_SINGLE = re.compile(r"'([^']*)(?:'|\Z)")
_DOLLAR_SINGLE = re.compile(r"\$'((?:[^'\\]|\\.)*)(?:'|\Z)", re.S)
_BACKQUOTED = re.compile(r"`((?:[^`\\]|\\.|\\\Z)*)(?:`|\Z)", re.S)
_NAME = re.compile(r"\$[A-Za-z0-9_?!#*@$-]*")
_EASY = re.compile(r"[\w./,:+@%^=-]+(?:[ \t]+(?:[0-9]*(?:>>|>&|>|<)[ \t]*)?[\w./,:+@%^=-]+)*", re.ASCII)
"""A command of plain words, of which some say where something is redirected to."""
_EASILY_JOINED = re.compile(r"[ \t]*(?:&&|\|\||[;|\n])[ \t]*")
_REDIRECTED = re.compile(r"[ \t][0-9]*(?:>>|>&|>|<)[ \t]*[^ \t]+")
_NOT_EASY = _FIRST | {"case", "function"}


@dataclass(slots=True)
class _Frame:
    """A place in which commands stand: the text itself, `( )`, `$( )`; or a part of a word that ends with `closes`."""

    closes: str
    """`)`, `"` (in double quotes), `}` (in `${ }`), `))` (arithmetic), or nothing: the end of the text."""
    words: list[str] = field(default_factory=list)
    word: list[str] | None = None
    skips: bool = False
    """The next word is where something is redirected to."""
    heredocs: list[tuple[str, bool, bool]] = field(default_factory=list)
    delimits: str = ""
    """The operator of a here-document whose delimiter is the next word."""
    quoted: bool = False
    cases: int = 0
    counts: bool = True
    """Whether its own words are commands; those of an array are none."""
    depth: int = 0
    begins: int = 0
    """Where arithmetic began, which may turn out to be commands: `$(( a ) && b)`."""


def simple_commands(text: str) -> Iterator[list[str]]:
    """Each simple command's words, also of commands inside of others and of words. Any text has some."""
    easy = _read_easily(text)
    yield from _read(text) if easy is None else easy


def _read_easily(text: str) -> list[list[str]] | None:
    """The same for what most steps say, in a fraction of the time; None for all else."""
    found = []
    for part in _EASILY_JOINED.split(text.strip(" \t")):
        if not _EASY.fullmatch(part):
            return None
        words = _REDIRECTED.sub("", part).split()
        if words[0] in _NOT_EASY:
            return None
        found.append(words)
    return found


def _read(text: str) -> Iterator[list[str]]:
    reader = _Reader()
    reader.texts.append((text, False))
    for piece, in_quotes in reader.texts:
        yield from reader.read(piece, in_quotes)


class _Reader:
    def __init__(self) -> None:
        self.texts: list[tuple[str, bool]] = []
        """Still to be read: what is in backquotes, and here-documents, in which only substitutions count."""
        self._found: list[list[str]] = []
        self._frames: list[_Frame] = []
        self._text = ""
        self._at = 0
        self._mistaken = 0

    def read(self, text: str, in_quotes: bool) -> list[list[str]]:
        self._text, self._at, self._found = text, 0, []
        self._frames = [_Frame("")]
        if in_quotes:
            self._frames.append(_Frame(_NEVER))
        while self._at < len(text):
            frame = self._frames[-1]
            if frame.closes in ("", ")"):
                self._in_commands(frame)
            else:
                self._in_word(frame)
        while self._frames:
            frame = self._frames.pop()
            if frame.closes in ("", ")"):
                self._end_command(frame)
            elif self._frames:
                self._frames[-1].word = [*(self._frames[-1].word or []), *(frame.word or [])]
        return self._found

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
        return match

    # Where commands stand

    def _in_commands(self, frame: _Frame) -> None:
        if self._take(_BLANK):
            if self._text[self._at - 1] != "\n":
                self._end_word(frame)
        elif match := self._take(_PLAIN):
            self._add(frame, match[0])
        elif self._is_common(frame) or (frame.word is None and self._take(_COMMENT)):
            return
        elif match := self._take(_OPERATOR):
            self._operate(frame, match[0])
        elif match := self._take(_REDIRECTION):
            self._redirect(frame, match[0])
        else:
            self._single(frame)

    def _single(self, frame: _Frame) -> None:
        character = self._text[self._at]
        self._at += 1
        if character == "(":
            self._open(frame)
        elif character == ")":
            self._end_command(frame)
            if frame.closes and not frame.cases:
                self._close()
        elif character in "'\"":  # An unbalanced quote is none.
            frame.quoted = True
        else:
            self._add(frame, character)

    def _open(self, frame: _Frame) -> None:
        if frame.word is not None and frame.word[-1].endswith("="):
            self._push(_Frame(")", counts=False))
            return
        arithmetic = self._text.startswith("(", self._at) and frame.word is None and frame.words in ([], ["for"])
        if arithmetic:
            self._at += 1
            self._add(frame, OPAQUE)
        else:
            self._end_command(frame)
        self._push(_Frame("))", begins=self._at) if arithmetic else _Frame(")"))

    def _operate(self, frame: _Frame, operator: str) -> None:
        if operator.startswith("&>"):
            self._redirect(frame, operator)
            return
        self._end_command(frame)
        if operator == "\n" and frame.heredocs:
            heredocs, frame.heredocs = frame.heredocs, []
            for delimiter, indented, literal in heredocs:
                self._skip_heredoc(delimiter, indented=indented, literal=literal)

    def _redirect(self, frame: _Frame, operator: str) -> None:
        if self._text.startswith("(", self._at) and operator in ("<", ">"):  # <( ... ) is a word.
            self._at += 1
            self._add(frame, OPAQUE)
            self._push(_Frame(")"))
            return
        if frame.word is not None and "".join(frame.word).isdigit():
            frame.word = None
        self._end_word(frame)
        if operator in ("<<", "<<-"):
            frame.delimits = operator
        else:
            frame.skips = True

    def _skip_heredoc(self, delimiter: str, *, indented: bool, literal: bool) -> None:
        begin = self._at
        while self._at < len(self._text):
            end = self._text.find("\n", self._at)
            end = len(self._text) if end < 0 else end
            line, at = self._text[self._at : end], self._at
            self._at = min(end + 1, len(self._text))
            if (line.lstrip("\t") if indented else line) == delimiter:
                break
        else:
            at = self._at
        if not literal:
            self.texts.append((self._text[begin:at], True))

    # Words

    def _in_word(self, frame: _Frame) -> None:
        """In double quotes, in `${ }` or in arithmetic: only what ends it, quotes and substitutions count."""
        if frame.closes in _QUOTED and (match := self._take(_IN_QUOTES)):
            self._add(frame, match[0])
        elif self._text.startswith(frame.closes, self._at) and not frame.depth:
            self._at += len(frame.closes)
            self._close()
        elif frame.closes == "))" and not frame.depth and self._text[self._at] == ")":
            self._read_as_commands(frame)
        elif not self._is_common(frame):
            character = self._text[self._at]
            if frame.closes == "))":
                frame.depth += {"(": 1, ")": -1}.get(character, 0)
            self._add(frame, character)
            self._at += 1

    def _read_as_commands(self, frame: _Frame) -> None:
        self._frames.pop()
        self._mistaken += 1
        if self._mistaken <= MISTAKEN_MAX:
            self._at = frame.begins
            self._push(_Frame(")"))
            self._push(_Frame(")"))
        else:
            self._at += 1

    def _is_common(self, frame: _Frame) -> bool:
        """Quotes, escapes and substitutions, which are read alike almost everywhere."""
        character = self._text[self._at]
        if character == "\\":
            escaped = self._text[self._at + 1 : self._at + 2]
            self._at += 2
            frame.quoted = True
            self._add(frame, "" if escaped == "\n" else escaped)
        elif character == "'" and frame.closes not in _QUOTED:
            match = self._take(_SINGLE)
            frame.quoted = True
            self._add(frame, match[1] if match else "")
        elif character == '"' and frame.closes not in _QUOTED:
            self._at += 1
            frame.quoted = True
            self._push(_Frame('"'))
        elif character == "`":
            match = self._take(_BACKQUOTED)
            self.texts.append((re.sub(r"\\([\\`$])", r"\1", match[1] if match else ""), False))
            self._add(frame, OPAQUE)
        elif character == "$":
            self._dollar(frame)
        else:
            return False
        return True

    def _dollar(self, frame: _Frame) -> None:
        if self._text.startswith("$((", self._at):
            self._at += 3
            self._add(frame, OPAQUE)
            self._push(_Frame("))", begins=self._at))
        elif self._text.startswith("$(", self._at):
            self._at += 2
            self._add(frame, OPAQUE)
            self._push(_Frame(")"))
        elif self._text.startswith("${", self._at):
            self._at += 2
            self._add(frame, "${")
            self._push(_Frame("}"))
        elif frame.closes not in _QUOTED and (match := self._take(_DOLLAR_SINGLE)):
            self._add(frame, match[1])
        elif match := self._take(_NAME):
            self._add(frame, match[0])

    def _push(self, frame: _Frame) -> None:
        if len(self._frames) < DEPTH_MAX:  # Deeper than that nobody writes, and any text must end.
            self._frames.append(frame)

    def _close(self) -> None:
        frame = self._frames.pop()
        if frame.closes in ('"', "}"):
            text = "".join(frame.word or ()) + ("}" if frame.closes == "}" else "")
            self._add(self._frames[-1], text)

    @staticmethod
    def _add(frame: _Frame, text: str) -> None:
        if frame.word is None:
            frame.word = [text]
        else:
            frame.word.append(text)

    def _end_word(self, frame: _Frame) -> None:
        if frame.word is None:
            return
        word, quoted = "".join(frame.word), frame.quoted
        frame.word, frame.quoted = None, False
        if frame.delimits:
            frame.heredocs.append((word, frame.delimits == "<<-", quoted))
            frame.delimits = ""
        elif frame.skips:
            frame.skips = False
        elif frame.words or quoted:
            frame.words.append(word)
        elif word in _FIRST:
            frame.cases = max(0, frame.cases - (word == "esac"))
        else:
            frame.cases += word == "case"
            frame.words.append(word)

    def _end_command(self, frame: _Frame) -> None:
        self._end_word(frame)
        frame.skips, frame.delimits = False, ""
        words, frame.words = frame.words, []
        if words[:1] == ["function"]:
            words = words[2:]
            while words and words[0] in _FIRST:
                words = words[1:]
        if words and frame.counts:
            self._found.append(words)
