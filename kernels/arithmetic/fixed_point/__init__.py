"""Fixed point and integers: codes are integers, and a number is its code times a step."""
