"""Methods side by side: tuned alike, trained alike, scored once on test."""
