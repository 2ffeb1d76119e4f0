"""Speed and memory scripts: each prints a ratio against something that it ran itself."""
