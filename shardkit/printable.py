"""Text as it can be shown: what comes from data, from functions or from the environment may hold anything.

A terminal obeys escape sequences, in a file's name or in the message of an error as well: it may be made to show other
text, to rename its window, or to take what it is sent for typed. Standard library only, as the queue's functions are.
"""

from __future__ import annotations

# All control characters but line feed and tab, and those that turn the direction of what follows.
_SHOWN = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"} | {
    code: f"\\u{code:04x}" for code in (0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def printable(text: str) -> str:
    """The text with control characters escaped, and halves of characters, which no file or terminal takes."""
    if text.isascii() and text.isprintable():
        return text
    return text.translate(_SHOWN).encode("utf-8", "backslashreplace").decode()
