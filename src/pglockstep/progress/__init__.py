"""What a target itself remembers of its link, in the schema ``pglockstep``: the one truth after any crash."""
