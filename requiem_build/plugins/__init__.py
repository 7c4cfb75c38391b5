"""Who is told: readers of the stream of events."""

ABI_VERSION = 1
"""Of what a plug-in and this program call of each other; raised when either side would break."""
