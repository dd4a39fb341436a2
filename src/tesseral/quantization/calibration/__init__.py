"""Learning the transforms of one block after another."""
