"""Model definitions, as their papers put them: no precision, no paging, no parallelism, no fusion. Passes add those."""
