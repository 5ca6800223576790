"""What a recipe will take, by arithmetic: parameters, memory by layout, time, failures, cost, and serving."""
