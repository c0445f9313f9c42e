"""Studies: grids of trainings, each attacked and certified, resumable to the checkpoint, with statistics and a report."""
