"""Values, types and rows in Arrow and Parquet; knows no folder."""
