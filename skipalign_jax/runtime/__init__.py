"""Used by every command: errors, terminal, processes, files."""
