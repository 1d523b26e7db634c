"""What a prompt asks for, as text and as GenEval's metadata, both ways.

    prompt     = opening phrase ["and" phrase | relation phrase] ["on a" background "background"]
               | opening "the word" quoted word
    phrase     = ("a" | "an") [colour] kind | ("two" | "three" | "four") [colour] kinds

A relation joins two single objects. Case, a full stop at the end and superfluous spaces do not matter.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from lightning_gen.shapes.glyphs import ALPHABET, LONGEST
from lightning_gen.shapes.vocabulary import BACKGROUNDS, COLORS, KINDS, NUMBERS, OPENINGS, PLURALS, RELATIONS

__all__ = ["Phrase", "Request", "parse_prompt"]

_COUNTS: Final = {word: count for count, word in NUMBERS.items()}
_SINGULAR: Final = {plural: kind for kind, plural in PLURALS.items()}


@dataclasses.dataclass(frozen=True)
class Phrase:
    """Objects of one kind.

    Attributes:
        kind: one of ``KINDS``.
        color: one of ``COLORS``, or None.
        count: 1 to 4.
    """

    kind: str
    color: str | None = None
    count: int = 1

    def text(self) -> str:
        """The phrase in words."""
        if self.count > 1:
            return " ".join(part for part in (NUMBERS[self.count], self.color, PLURALS[self.kind]) if part)
        noun = f"{self.color} {self.kind}" if self.color else self.kind
        return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


@dataclasses.dataclass(frozen=True)
class Request:
    """What a picture shall show.

    Attributes:
        phrases: one or two, or none where a word is asked for.
        relation: where the first stands, seen from the second; None = together.
        background: one of ``BACKGROUNDS``, or None.
        word: a word in capital letters, or empty.
        opening: one of ``OPENINGS``.
    """

    phrases: tuple[Phrase, ...]
    relation: str | None = None
    background: str | None = None
    word: str = ""
    opening: str = OPENINGS[0]

    @property
    def tag(self) -> str:
        """GenEval's name of the task; ``word`` for what GenEval does not know."""
        if self.word:
            return "word"
        if self.relation is not None:
            return "position"
        first = self.phrases[0]
        if len(self.phrases) == 2:
            return "color_attr" if any(phrase.color for phrase in self.phrases) else "two_object"
        if first.count > 1:
            return "counting"
        return "colors" if first.color else "single_object"

    def prompt(self) -> str:
        """The prompt."""
        if self.word:
            body = f'the word "{self.word}"'
        elif self.relation is not None:
            body = f"{self.phrases[0].text()} {self.relation} {self.phrases[1].text()}"
        else:
            body = " and ".join(phrase.text() for phrase in self.phrases)
        ending = f" on a {self.background} background" if self.background else ""
        return f"{self.opening} {body}{ending}"

    def metadata(self) -> dict[str, Any]:
        """GenEval's record: tag, include, exclude where a number is asked for, prompt.

        Returns:
            Plain JSON values. A relation stands at the first phrase, whose clause comes second, as in GenEval.
        """
        phrases = self.phrases if self.relation is None else self.phrases[::-1]
        include: list[dict[str, Any]] = []
        for phrase in phrases:
            clause: dict[str, Any] = {"class": phrase.kind, "count": phrase.count}
            include.append(clause | ({"color": phrase.color} if phrase.color else {}))
        if self.relation is not None:
            include[1]["position"] = [self.relation, 0]
        record: dict[str, Any] = {"tag": self.tag, "include": include}
        if self.tag == "counting":
            first = self.phrases[0]
            record["exclude"] = [{"class": first.kind, "count": first.count + 1}]
        return record | ({"word": self.word} if self.word else {}) | {"prompt": self.prompt()}


def parse_prompt(prompt: str) -> Request:
    """Read a prompt.

    Args:
        prompt: text of the grammar.

    Returns:
        What it asks for.

    Raises:
        ValueError: it does not belong to the grammar; the word at fault is named.
    """
    words = _Words(prompt)
    opening = words.one_of(OPENINGS, "an opening")
    if words.take("the word"):
        return Request((), word=words.quoted(), opening=opening)
    phrases = [_phrase(words)]
    relation = next((name for name in RELATIONS if words.take(name)), None)
    if relation is not None or words.take("and"):
        phrases.append(_phrase(words))
    background = None
    if words.take("on a"):
        background = words.one_of(tuple(BACKGROUNDS), "a background")
        words.expect("background")
    words.end()
    if relation is not None and any(phrase.count > 1 for phrase in phrases):
        raise ValueError(f"prompt {prompt!r}: {relation!r} joins single objects, not several of them")
    return Request(tuple(phrases), relation, background, opening=opening)


def _phrase(words: _Words) -> Phrase:
    article = words.one_of(("a", "an", *list(_COUNTS)[1:]), "an article or a number")
    count = _COUNTS.get(article, 1)
    color = next((name for name in COLORS if words.take(name)), None)
    if count == 1:
        return Phrase(words.one_of(KINDS, "a colour or a kind"), color)
    return Phrase(_SINGULAR[words.one_of(tuple(_SINGULAR), "a colour or kinds")], color, count)


class _Words:
    """The words of a prompt, taken from the front."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.rest = prompt.strip().removesuffix(".").split()

    def take(self, text: str) -> bool:
        """Take some words if they come next."""
        wanted = text.split()
        found = [word.lower() for word in self.rest[: len(wanted)]] == wanted
        if found:
            del self.rest[: len(wanted)]
        return found

    def one_of(self, choices: tuple[str, ...], what: str) -> str:
        """Take the one of some texts that comes next."""
        for choice in choices:
            if self.take(choice):
                return choice
        raise self.wrong(f"{what} ({', '.join(choices)})")

    def expect(self, text: str) -> None:
        """Take words that must come next."""
        if not self.take(text):
            raise self.wrong(repr(text))

    def quoted(self) -> str:
        """Take a word in double quotes; nothing may follow."""
        if len(self.rest) != 1 or not (self.rest[0].startswith('"') and self.rest[0].endswith('"')):
            raise self.wrong('one word in double quotes, as in "CAT", and nothing more')
        word = self.rest.pop()[1:-1].upper()
        if not 1 <= len(word) <= LONGEST or any(letter not in ALPHABET for letter in word):
            raise ValueError(f"prompt {self.prompt!r}: a word has 1 to {LONGEST} letters from A to Z, got {word!r}")
        return word

    def end(self) -> None:
        """Nothing may follow."""
        if self.rest:
            raise self.wrong("the end of the prompt")

    def wrong(self, expected: str) -> ValueError:
        """What to say about the next word."""
        place = repr(self.rest[0]) if self.rest else "its end"
        return ValueError(f"prompt {self.prompt!r}, at {place}: expected {expected}")
