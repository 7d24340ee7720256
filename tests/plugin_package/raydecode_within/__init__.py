"""A sampler from outside, as a third party would ship it."""
