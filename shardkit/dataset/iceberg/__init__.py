"""A dataset as an Iceberg table: a snapshot for each switch, of the files that the dataset has then."""
