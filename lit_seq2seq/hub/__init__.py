"""Models as folders, here and on the hub."""
