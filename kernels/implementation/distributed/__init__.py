"""Distributed execution: training or inference divided among workers, and what they must send each other."""
