"""A run, driven here or on an engine: started, looked at, resumed, checked, cleaned, scheduled."""
