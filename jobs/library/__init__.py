"""Built-in job types, one noun a file."""
