"""What a trained model is used for: predicting, exporting, answering over HTTP."""
