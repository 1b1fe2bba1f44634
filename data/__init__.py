"""What feeds the detector: annotation index, order, augmentation, DALI graph, loader, embedded set."""
