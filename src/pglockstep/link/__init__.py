"""One link's life: its state machine, the wiring of its pipeline, and what the commands ask of it."""
