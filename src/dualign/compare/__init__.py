"""Many methods on one job: a run directory a method and seed, one table of all."""
