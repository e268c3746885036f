"""Weight sharing: few values stand for many weights, and the frequent ones get short codes."""
