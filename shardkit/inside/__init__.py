"""Records inside files: how a file is cut into pieces, and how one piece is read without the others."""
