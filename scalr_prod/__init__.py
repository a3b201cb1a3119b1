"""SCALR: synthetic cross-domain augmentation and learning for recommendation.

Importing this package is cheap: every heavy library is imported inside the room that needs it.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
