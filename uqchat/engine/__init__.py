"""The decode loop and everything under it. Knows no estimator and no interface."""
