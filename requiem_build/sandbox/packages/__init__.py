"""Package databases: which packages a host has, what belongs to each, what each needs. One module for each kind."""
