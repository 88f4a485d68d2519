"""What happens to one request. Knows neither Flask nor Prometheus (a test checks that)."""
