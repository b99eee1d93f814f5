"""What every command needs: errors, terminal, processes, files."""
