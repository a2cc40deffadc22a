"""What runs in a container before shardkit does; see `shardkit.runs.bundle`."""
