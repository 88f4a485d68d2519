"""Pure functions between wire formats: no input or output, no Flask, no metrics."""
