"""One decoder: its parts, losses, adapters, sharding and inference."""
