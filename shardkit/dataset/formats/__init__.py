"""The file formats that a dataset can have, each in a module of its own; ``kinds`` has the table of them."""
