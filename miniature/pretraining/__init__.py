"""Trains the embedded models of miniature/models anew; nothing that a user runs needs it."""
