"""Pages for a browser: one file each, with its charts, that asks no network for anything."""
