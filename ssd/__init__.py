"""SSD300: the detector and its training."""
