"""Pass 2: parts become files; the switch from one dataset to the next, SQL, the catalogue."""
