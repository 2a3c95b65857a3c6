"""Random numbers: one stream for each sample and purpose, Brownian paths, and mixtures of two noises."""
