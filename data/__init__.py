"""The input pipeline: annotation index, order, augmentation, DALI graph, loader, embedded set."""
