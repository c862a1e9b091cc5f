"""System: what a host has of its operating system: memory objects, their pages, names in the file system, processes."""
