"""What every room uses: errors, the frame of a door, files, addresses, text, pictures."""
