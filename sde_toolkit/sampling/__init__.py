"""From noise to data and back: the one loop, compiled steps, what is measured meanwhile, and the automatic choice."""
