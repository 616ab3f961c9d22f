"""The preflight of a link: what both ends are, what they lack, and the exact fix of each fault. Changes nothing."""
