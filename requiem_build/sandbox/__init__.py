"""What a step may touch: one family of interchangeable walls."""
