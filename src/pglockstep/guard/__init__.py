"""The guard: judges every path that can remove data. Its rules are pure."""
