"""Rendered worlds: procedural objects, textures, clutter and sensor noise."""
