"""Metrics of explanations: faithfulness, robustness, complexity, localisation, randomisation."""
