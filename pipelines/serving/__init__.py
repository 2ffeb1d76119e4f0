"""What becomes of a trained model outside of this project: a program, its card, an MLflow model."""
