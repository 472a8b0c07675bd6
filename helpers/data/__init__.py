"""CIFAR-100 and its stand-in: read, described, decoded, augmented, corrupted. NumPy only."""
