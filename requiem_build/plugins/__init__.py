"""Who is told: readers of the stream of events."""
