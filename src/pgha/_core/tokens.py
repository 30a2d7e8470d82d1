"""PostgreSQL's lexical rules, as far as the handling of a statement depends on them.

The time is linear in the length of every text.
"""

import re
from collections.abc import Iterator
from typing import Final

# White space (the vertical tab only after 16), identifiers (every byte above 127
# belongs to one: a byte order mark or a no-break space is part of a name), comments to the line's end or
# nested.
_NOISE: Final = re.compile(rb"(?:[ \t\n\r\f\v;(]++|--[^\n\r]*+)*+")
_WORD: Final = re.compile(rb"[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*+")
_COMMENT_EDGE: Final = re.compile(rb"/\*|\*/")
# An unfinished literal extends to the end. All quantifiers are possessive: the time is linear for any text.
_TOKEN: Final = re.compile(
    rb"""
      (?P<space> [ \t\n\r\f\v]++ | --[^\n\r]*+ )
    | (?P<comment> /\* )
    | (?P<literal> [eE]'[^'\\]*+ (?: (?:\\.|'') [^'\\]*+ )*+ '? | '[^']*+ (?: '' [^']*+ )*+ '? )
    | (?P<name> (?:[uU]&)? "[^"]*+ (?: "" [^"]*+ )*+ "? )
    | (?P<dollar> \$ (?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*+)?+ \$ )
    | (?P<word> [A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*+ )
    | [0-9]++ | .
    """,
    re.DOTALL | re.VERBOSE,
)
_NOT_IN_NAME: Final = re.compile(rb"[^A-Za-z0-9_\x80-\xff]")


def first_word(text: bytes) -> tuple[int, bytes]:
    """Return the index of the first word and the word in upper case, empty if another token comes first."""
    start = _after_noise(text, 0)
    while text.startswith(b"/*", start):
        start = _after_noise(text, _after_comment(text, start))
    found = _WORD.match(text, start)
    return start, found[0].upper() if found else b""


def _after_noise(text: bytes, start: int) -> int:
    found = _NOISE.match(text, start)
    return found.end() if found else start


def _after_comment(text: bytes, start: int) -> int:
    """Return the end of the comment that opens at `start`; comments nest, an unfinished one has no end."""
    depth = 0
    for edge in _COMMENT_EDGE.finditer(text, start):
        depth += 1 if edge[0] == b"/*" else -1
        if depth == 0:
            return edge.end()
    return len(text)


def normalised(text: bytes, start: int) -> Iterator[bytes]:
    """Yield the statement's tokens, so that no literal, quoted name or comment can deceive a rule.

    Words become upper case, each quoted name becomes one word, literals become empty, comments are dropped.
    """
    while token := _TOKEN.match(text, start):
        start = token.end()
        match token.lastgroup:
            case "space":
                continue
            case "comment":
                start = _after_comment(text, token.start())
            case "literal":
                yield b"'"
            case "dollar":
                end = text.find(token[0], start)
                start = len(text) if end < 0 else end + len(token[0])
                yield b"'"
            case "name":
                yield b'"' + _NOT_IN_NAME.sub(b"_", token[0].lstrip(b"uU&").strip(b'"')) + b'"'
            case _:
                yield token[0].upper()
