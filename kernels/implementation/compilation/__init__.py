"""Compilation and tuning: a network becomes a program for a machine, and a search finds the one that runs best."""
