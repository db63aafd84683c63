"""A plan as a page to read, review and keep: what moved where, how exactly, and what is wrong."""
