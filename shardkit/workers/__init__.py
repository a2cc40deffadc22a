"""Pass 1: chunks become parts, whatever dies."""
