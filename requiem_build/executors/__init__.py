"""How a request is run: one family of interchangeable executors."""
