"""From questions to calibrated estimators, from a shell: `python -m trainers <name>`."""
