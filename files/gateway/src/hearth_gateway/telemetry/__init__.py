"""Metrics and logs. They see numbers and names, never content."""
