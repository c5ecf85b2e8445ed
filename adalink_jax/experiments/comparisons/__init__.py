"""Methods side by side: tuning, equal budgets, what a step costs."""
