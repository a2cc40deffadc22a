"""What a run will take: its queue on a simulated clock, with a simulated service, over the timings of a sample."""
