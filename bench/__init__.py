"""Measures pglockstep beside the tools that people would use instead: the same work, one run, taking turns."""
