"""Two clouds with outliers, and a matching learned through the plan: which eps learns, and with which gradient."""
