"""Clusters that joblib reaches: chunks of a run go to their nodes as they go to the workers of this machine."""
