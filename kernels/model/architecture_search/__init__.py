"""Architecture search: an algorithm chooses the network."""
