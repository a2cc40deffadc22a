"""From objects to records, groups, shards and chunks, and what of earlier runs still stands."""
