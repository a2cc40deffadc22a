"""Text that is safe to show, because text from data, functions or the environment may hold anything.

A terminal obeys escape sequences, also in the name of a file or the message of an error: they can make it show other
text, rename its window, or act as if something was typed. Standard library only, like the queue's functions.
"""

from __future__ import annotations

# All control characters except line feed and tab, and those that change the direction of the text after them.
_SHOWN = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"} | {
    code: f"\\u{code:04x}" for code in (0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def printable(text: str) -> str:
    """The text with control characters escaped, and also halves of characters, which no file or terminal accepts."""
    if text.isascii() and text.isprintable():
        return text
    return text.translate(_SHOWN).encode("utf-8", "backslashreplace").decode()
