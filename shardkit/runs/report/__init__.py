"""A run as one page for a browser, from the run folder and the dataset alone."""
