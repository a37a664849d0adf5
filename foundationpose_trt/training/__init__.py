"""Training of our own refiner and scorer weights on rendered scenes."""
