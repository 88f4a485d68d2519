"""hearth-gateway: one private door to the model providers."""

__version__ = "0.1.0"
