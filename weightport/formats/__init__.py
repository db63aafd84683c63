"""One module per file format; none imports a framework."""
