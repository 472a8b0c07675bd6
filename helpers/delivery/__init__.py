"""From a trained network to a version in a bucket: the bundle, its store, its aliases."""
