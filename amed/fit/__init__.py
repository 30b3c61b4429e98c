"""Fitting: plain search, weights in closed form, times, polish, comparison (calibrate), and Algorithm 1."""
