"""Ray actors: a class is one owned resource."""
