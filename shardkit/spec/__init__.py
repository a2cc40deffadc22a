"""What a pipeline says, validated. It does nothing."""
