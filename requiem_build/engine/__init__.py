"""When a step runs, and whether it must."""
