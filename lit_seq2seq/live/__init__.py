"""Models that write while they read, without torch: inputs that come in pieces, and outputs as they grow."""
