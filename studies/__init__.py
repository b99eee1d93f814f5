"""Studies done with the package; nothing in the package imports them."""
