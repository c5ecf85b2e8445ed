"""Input adapters and the seam's upper side. They know the seam's structs and no backbone."""

from adalink_jax.adapters.adalink import AdaLink, AdaLinkAdapter
from adalink_jax.adapters.adapted import AdaptedModel

__all__ = ["AdaLink", "AdaLinkAdapter", "AdaptedModel"]
