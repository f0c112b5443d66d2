"""One module or folder per figure or table: the grid, the run, the plot, the result."""
