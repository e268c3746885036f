"""One protocol a kind; the module's name is the kind's."""
