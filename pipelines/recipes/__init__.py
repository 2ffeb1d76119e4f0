"""What is trained and how: a recipe's page, its reading, the model that it names."""
