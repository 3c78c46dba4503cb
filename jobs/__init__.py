"""What a person or a scheduler runs: the command line, demo and benchmarks."""
