"""The heads' units as the public codes have them, written plainly: the peers of the speed table."""
