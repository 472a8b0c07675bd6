"""The HTTP service around a predictor: routes, limits, problems, and the public address."""
