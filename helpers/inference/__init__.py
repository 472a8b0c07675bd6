"""From a bundle to probabilities: engines, micro-batches, and the exchange of one model for another."""
