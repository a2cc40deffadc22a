"""What the text formats have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.types as pt

if TYPE_CHECKING:
    import pyarrow as pa

READ_BLOCK_BYTES = 32 << 20  # a row of text must fit into one


def is_binary(kind: pa.DataType) -> bool:
    """Whether values of the type are bytes that are no text."""
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_fixed_size_binary(kind))
