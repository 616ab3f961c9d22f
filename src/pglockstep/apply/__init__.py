"""Applying a source's changes to a target: statements, made purely, and the session that runs them."""
