"""What things are. Pure: no files, processes, clock, environment or randomness."""
