"""What the commands share: flags, gin, the terminal, processes."""
