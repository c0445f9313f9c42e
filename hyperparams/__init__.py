"""RL Zoo hyperparameters that use the package, one YAML file per algorithm."""
