"""What an expert would use instead: other libraries as contestants, each absent with a reason where not installed."""
