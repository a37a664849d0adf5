"""Scenes on disk in BOP format, and the metrics that judge poses on them."""
