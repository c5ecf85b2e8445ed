"""Plans a job: compiles its real programs for hardware that need not be here, and reports memory, FLOPs, traffic and a speed bound."""
