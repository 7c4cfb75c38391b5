"""What we remember: objects by digest, records by request."""
