"""The operating system: files, locks, cache directories, interrupts, versions."""
