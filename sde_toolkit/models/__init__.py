"""Score models: a network, how its output is read, how time is fed to it; and what is put around one. No guidance."""
