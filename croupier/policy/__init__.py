"""What a decision is: events, exploration, sampling, oracles and generations, without I/O."""
