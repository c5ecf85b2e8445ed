"""Many runs of one description: their settings, plans, folders, processes, and what is shown meanwhile."""
