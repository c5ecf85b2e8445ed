"""Many runs from one description: their settings, plans, folders and processes, and the progress display."""
